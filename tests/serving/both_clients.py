"""Both clients behind one face, so that one test asks either: what the async client would have awaited is awaited."""

import asyncio
import inspect

from armillary.serving.client.async_client import AsyncClient
from armillary.serving.client.client import Client

KINDS = ("sync", "async")


def open_client(kind, url, *arguments, **options):
    """A client of this kind with the methods of the sync one."""
    return Client(url, *arguments, **options) if kind == "sync" else Awaited(url, *arguments, **options)


class Awaited:
    def __init__(self, *arguments, **options):
        self.runner = asyncio.Runner()
        self.remote = self.runner.run(made(*arguments, **options))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.runner.run(self.remote.aclose())
        self.runner.close()

    def __getattr__(self, name):
        method = getattr(self.remote, name)

        def call(*arguments, **options):
            found = method(*arguments, **options)
            return self.runner.run(found) if inspect.iscoroutine(found) else AwaitedStream(self.runner, found)

        return self.runner.run(method()) if name == "model_id" else call


class AwaitedStream:
    def __init__(self, runner, stream):
        self.runner = runner
        self.stream = stream

    def __iter__(self):
        return self

    def __next__(self):
        found = self.runner.run(following(self.stream))
        if found is None:
            raise StopIteration
        return found

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def collect(self):
        return self.runner.run(self.stream.collect())

    def close(self):
        self.runner.run(self.stream.aclose())


async def made(*arguments, **options):
    return AsyncClient(*arguments, **options)


async def following(stream):
    return await anext(stream, None)
