"""An application before another that fails as servers and networks do: busy, not ready, or the connection cut."""

import json


class FlakyApp:
    """The first requests are answered as `failures` say: "429", "503", "cut" (in the middle of the answer), "lost" (the
    app does it, but nobody hears of it); the others by the app."""

    def __init__(self, app, failures, retry_after=None, only="/v1/"):
        self.app = app
        self.failures = list(failures)
        self.retry_after = retry_after
        self.only = only
        self.requests = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not scope["path"].startswith(self.only):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        self.requests.append((scope["method"], scope["path"], headers))
        if not self.failures:
            await self.app(scope, receive, send)
            return
        failure = self.failures.pop(0)
        if failure == "lost":

            async def unheard(message):
                """What was asked for is done."""

            await self.app(scope, receive, unheard)
            failure = "503"
        else:
            while (await receive()).get("more_body"):
                pass
        if failure == "cut":
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]}
            await send(start)
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionAbortedError("cut by the test")
        body = json.dumps({"title": "No room", "status": int(failure), "detail": "the test says so"}).encode()
        answer = [(b"content-type", b"application/problem+json"), (b"x-request-id", b"req-1")]
        if self.retry_after is not None:
            answer.append((b"retry-after", self.retry_after.encode()))
        await send({"type": "http.response.start", "status": int(failure), "headers": answer})
        await send({"type": "http.response.body", "body": body})
