"""Carries bytes between a socket file and a port of the loopback: `milvus_relay.py LISTEN TO`, each a port or a path.

Milvus listens on every interface, so that the tests start it in a network of its own, which has nothing but a loopback.
A file reaches across: one relay in there, one out here. With `--loopback`, the loopback is switched on first.
"""

import asyncio
import fcntl
import socket
import struct
import sys

SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def switch_on_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main(listen, to):
    async def connected(reader, writer):
        try:
            if to.isdigit():
                there = await asyncio.open_connection("127.0.0.1", int(to))
            else:
                there = await asyncio.open_unix_connection(to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))

    if listen.isdigit():
        server = await asyncio.start_server(connected, "127.0.0.1", int(listen))
    else:
        server = await asyncio.start_unix_server(connected, listen)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "--loopback":
        switch_on_loopback()
    asyncio.run(main(*words[-2:]))
