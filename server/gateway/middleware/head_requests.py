"""HeadRequests: answer HEAD on every GET route, with the headers of its response."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import background


class HeadRequests:
    """Run HEAD as GET up to the headers. Link checkers, load balancers and download tools send it to any route.

    The rest is canceled: a stream of events would otherwise continue unread until its job ends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and not answered.is_set():
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                answered.set()

        async def respond() -> None:
            await self.app({**scope, "method": "GET"}, receive, send_headers)

        app, headers_sent = asyncio.create_task(respond()), asyncio.create_task(answered.wait())
        try:
            await asyncio.wait((app, headers_sent), return_when=asyncio.FIRST_COMPLETED)
            if app.done():
                app.result()
        finally:
            await background.cancel_and_wait(app, headers_sent)
