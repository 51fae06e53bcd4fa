"""How a client's request is sent: again where that is safe and worth it, files piece by piece, until a deadline."""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from .errors import UnreachableError
from .requests import Call, RetryRules, error_of, is_under_way, is_worth_repeating, retry_after

Answer = TypeVar("Answer")
PIECE_BYTES = 2**20
"""Of a file that is sent or fetched, in memory at once."""


class Transport:
    """The connections to the server at `url`; close it. See `AsyncClient` for what the arguments mean."""

    def __init__(self, url: str, api_key: str | None, rules: RetryRules, certificates: str | Path | None) -> None:
        self.url = url
        self.rules = rules
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # The server may be this machine: proxies of the environment are not asked.
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=self.rules.timeout,
            headers=headers,
            trust_env=False,
            verify=True if certificates is None else ssl.create_default_context(cafile=str(certificates)),
        )
        self._was_answered = False

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[Answer]) -> Answer:
        """Send a request until it is answered, by the rules of `RetryRules`. Raises ApiError."""
        end = time.monotonic() + self.rules.deadline
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    response = await self._attempt(call)
            except httpx.TransportError as error:
                if not self.rules.attempts_left(attempt, self._was_answered):
                    raise UnreachableError(
                        f"{call.method} {self.url}{call.path}: {_reason(error)}, {attempt + 1} times; is the server up?"
                    ) from error
                wait = self.rules.wait(attempt)
                last: Exception = UnreachableError(f"{call.method} {self.url}{call.path}: {_reason(error)}")
            except TimeoutError:
                raise UnreachableError(
                    f"{call.method} {self.url}{call.path}: no answer within {self.rules.deadline:g} s"
                ) from None
            else:
                self._was_answered = True
                if response.is_success:
                    return call.read(response)
                # What an earlier attempt deleted, whose answer was lost, is not there any more.
                if call.method == "DELETE" and response.status_code == 404 and attempt:
                    return call.read(response)
                last = error_of(response)
                if not is_worth_repeating(response) and not (attempt and is_under_way(last)):
                    raise last
                wait = self.rules.wait(attempt, retry_after(response))
            if time.monotonic() + wait >= end:
                last.add_note(f"given up after {attempt + 1} attempts: the deadline is {self.rules.deadline:g} s")
                raise last
            await asyncio.sleep(wait)
            attempt += 1

    async def _attempt(self, call: Call[Any]) -> httpx.Response:
        content = call.body if call.file is None else _pieces(call.file)
        request = self._http.build_request(call.method, call.path, content=content, headers=dict(call.headers))
        response = await self._http.send(request, stream=call.into is not None)
        if call.into is None:
            return response
        partial_file = call.into.with_name(f".{call.into.name}.{os.getpid()}.partial")
        try:
            if not response.is_success:
                await response.aread()
                return response
            with partial_file.open("wb") as file:
                async for piece in response.aiter_bytes(PIECE_BYTES):
                    file.write(piece)
            partial_file.replace(call.into)
        finally:
            await response.aclose()
            partial_file.unlink(missing_ok=True)
        return response


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    """The bytes of a file, read as they are sent."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _reason(error: httpx.TransportError) -> str:
    return str(error) or {"ReadTimeout": "no answer in time"}.get(type(error).__name__, type(error).__name__)
