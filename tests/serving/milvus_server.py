"""A real Milvus server for the tests, from the wheel of PyPI, that nobody but the tests can reach."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = Path(os.environ.get("MILVUS_SERVER", ROOT / ".venv" / "milvus-server" / "bin" / "milvus-server"))
RELAY = Path(__file__).with_name("milvus_relay.py")
# Whoever is killed with the tests leaves no server behind.
DYING_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
UNSHARE = [*DYING_WITH_US, "unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
INSIDE_PORT = 19530
START_SECONDS = 120


def why_not():
    """Why there can be no server here, None if there can."""
    if not PROGRAM.exists():
        return f"no {PROGRAM}; `make test-slow` installs it where the package milvus can be had"
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"Milvus listens on every interface, and a network of its own for it cannot be made here: {error}"
    return None


class MilvusServer:
    """In a network of its own, with keys switched on; `url` is on the loopback, `token` lets in.

    It may be killed and started again on the same data.
    """

    def __init__(self, folder):
        self.data = Path(folder) / "data"
        self.token = "root:Milvus"  # as it comes
        # Not pytest's folder: its path is too long for a socket.
        self._short = tempfile.TemporaryDirectory(prefix="milvus")
        self._socket = Path(self._short.name) / "socket"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._relay = subprocess.Popen([*DYING_WITH_US, sys.executable, RELAY, str(port), self._socket])
        self._server = None

    def __enter__(self):
        try:
            self.start()
            password = secrets.token_hex(8)
            client = self.client()
            client.update_password("root", "Milvus", password)
            client.close()
            self.token = f"root:{password}"
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        self._socket.unlink(missing_ok=True)
        inside = (
            f'"{sys.executable}" "{RELAY}" --loopback "{self._socket}" {INSIDE_PORT} & '
            f'exec "{PROGRAM}" --data "{self.data}" --proxy-port {INSIDE_PORT} --authorization-enabled true'
        )
        with Path(self._short.name, "log").open("wb") as log:
            self._server = subprocess.Popen([*UNSHARE, "sh", "-c", inside], stdout=log, stderr=log)
        self.wait()

    def wait(self):
        for _ in range(START_SECONDS):
            try:
                client = self.client()
                client.list_collections()
                client.close()
                return
            except Exception:
                assert self._server.poll() is None, Path(self._short.name, "log").read_text()[-2000:]
                time.sleep(1)
        raise AssertionError("Milvus did not start")

    def client(self):
        from pymilvus import MilvusClient

        return MilvusClient(self.url, token=self.token, timeout=5)

    def kill(self):
        """As a power cut would, for all of its processes at once."""
        self._server.send_signal(signal.SIGKILL)
        self._server.wait(30)

    def __exit__(self, *exception):
        for process in (self._server, self._relay):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(30)
        self._short.cleanup()
