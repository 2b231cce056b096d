"""Bodies that a gateway holds at a time are limited together: each alone may be within its limit."""

from typing import Any

import pytest
from starlette.exceptions import HTTPException

from server.gateway.api_keys import Caller
from server.gateway.middleware import body_limit
from server.gateway.middleware.body_limit import BodyLimit

pytestmark = pytest.mark.anyio
CHUNK = b"x" * 1000


async def test_the_bodies_of_one_key_and_of_all_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 uploads of 32 MiB by one key, within every limit, took 1.6 GB of the gateway's memory."""
    monkeypatch.setattr(body_limit, "MAX_KEY_HELD_BYTES", 3000)
    monkeypatch.setattr(body_limit, "MAX_HELD_BYTES", 5000)
    refused: list[tuple[str, str]] = []

    async def arrive() -> Any:
        return {"type": "http.request", "body": CHUNK, "more_body": True}

    async def ignore(message: Any) -> None:
        return

    def request(owner: str) -> dict[str, Any]:
        return {"type": "http", "path": "/v1/files", "headers": [], "state": {"caller": Caller(owner)}}

    async def read(scope: Any, receive: Any, send: Any) -> None:
        """Hold a chunk, and handle the rest of the requests meanwhile: the deepest one sees all bodies held."""
        try:
            await receive()
        except HTTPException as error:
            refused.append((scope["state"]["caller"].name, str(error.detail)))
            return
        if owners:
            await middleware(request(owners.pop(0)), arrive, ignore)

    middleware = BodyLimit(read, timeout_s=30)
    owners = ["ann", "ann", "ann"]
    await middleware(request("ann"), arrive, ignore)
    assert [owner for owner, _ in refused] == ["ann"] and "128" not in refused[0][1] and "'ann'" in refused[0][1]
    refused.clear()
    owners = ["ann", "ann", "bob", "bob", "eve"]
    await middleware(request("ann"), arrive, ignore)
    assert [owner for owner, _ in refused] == ["eve"] and "all callers" in refused[0][1]
    refused.clear()
    owners = ["", "", "", ""]
    await middleware(request(""), arrive, ignore)
    assert not refused and not middleware._held.total(), "what has ended is held no longer"


async def test_a_request_may_release_its_body_early() -> None:
    """An edit waits minutes for its image, long after it has decoded what was uploaded."""
    seen: list[int] = []

    async def arrive() -> Any:
        return {"type": "http.request", "body": CHUNK, "more_body": False}

    async def ignore(message: Any) -> None:
        return

    async def decode_and_wait(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(middleware._held.total())
        scope["state"]["body_released"]()
        seen.append(middleware._held.total())

    middleware = BodyLimit(decode_and_wait, timeout_s=30)
    await middleware({"type": "http", "path": "/", "headers": []}, arrive, ignore)
    assert seen == [1000, 0] and not middleware._held
