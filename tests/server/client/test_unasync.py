"""The synchronous client is generated from the asynchronous one."""

from server.client import unasync


def test_the_committed_sync_client_is_up_to_date() -> None:
    """An edit of aio.py without `make format`, or of sync.py by hand, would let the two clients drift apart."""
    assert unasync.TARGET.read_text() == unasync.synchronous(unasync.SOURCE.read_text())


def test_nothing_asynchronous_is_left() -> None:
    """A call that the table of renames misses would fail only when a user makes it."""
    code = unasync.TARGET.read_text()
    assert not [word for word in ("async ", "await ", "asyncio", "Async", "aclose", "aiter") if word in code]


def test_every_rename_is_used() -> None:
    """A stale entry of the table would rename something else one day."""
    source = unasync.SOURCE.read_text()
    assert not [name for name in unasync.RENAMES if name not in source]
