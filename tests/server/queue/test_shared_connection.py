"""One connection that many commands share: replies stay with their commands, and a lost connection is replaced."""

import asyncio
import os
import signal

import pytest
import uvloop
from redis.exceptions import ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.connection import shared
from server.queue.redis_client import connect
from server.settings import Settings

pytestmark = pytest.mark.anyio


async def test_many_commands_share_one_connection(settings: Settings) -> None:
    async with connect(settings.redis_url, 5.0) as redis, connect(settings.redis_url, 5.0) as other:
        before = len(await other.client_list())
        echoes = await asyncio.gather(*(redis.call("ECHO", str(number)) for number in range(500)))
        assert echoes == [str(number) for number in range(500)]
        assert len(await other.client_list()) == before + 1
    async with connect(settings.redis_url, 5.0) as other:
        assert len(await other.client_list()) <= before, "the connection closes with its client"


async def test_replies_are_text_or_bytes_as_asked(settings: Settings) -> None:
    async with connect(settings.redis_url, 5.0) as redis:
        text, raw = await asyncio.gather(redis.call("ECHO", b"\xff"), redis.call("ECHO", b"\xff", decode=False))
        assert text == "\ufffd" and raw == b"\xff"


async def test_a_canceled_command_takes_no_other_reply(settings: Settings) -> None:
    """Its reply still comes: it must go to nobody, not to the next command."""
    async with connect(settings.redis_url, 5.0) as redis:
        await redis.call("PING")
        commands = [asyncio.create_task(redis.call("ECHO", str(number))) for number in range(100)]
        await asyncio.sleep(0)
        for command in commands[::2]:
            command.cancel()
        found = await asyncio.gather(*commands, return_exceptions=True)
        assert found[1::2] == [str(number) for number in range(1, 100, 2)]
        assert all(isinstance(each, asyncio.CancelledError) for each in found[::2])
        assert await redis.call("ECHO", "next") == "next"


async def test_an_error_is_that_of_its_own_command(settings: Settings) -> None:
    async with connect(settings.redis_url, 5.0) as redis:
        found = await asyncio.gather(
            redis.call("ECHO", "a"), redis.call("NONE"), redis.call("ECHO", "b"), return_exceptions=True
        )
        assert isinstance(found[1], ResponseError) and found[::2] == ["a", "b"]


async def test_a_lost_connection_is_replaced_within_the_call(own_valkey: EmbeddedValkey) -> None:
    """Commands are safe to repeat, so that their callers need not learn of it."""
    async with connect(own_valkey.url, 5.0) as redis, connect(own_valkey.url, 5.0) as other:
        for _ in range(3):
            first = await redis.call("CLIENT", "ID")
            await other.client_kill_filter(_id=first)
            assert all(await asyncio.gather(*(redis.call("ECHO", "a") for _ in range(50))))
            assert await redis.call("CLIENT", "ID") != first


async def test_a_silent_redis_fails_all_commands_and_is_used_again(own_valkey: EmbeddedValkey) -> None:
    assert own_valkey.process is not None
    async with connect(own_valkey.url, 2.0) as redis:
        await redis.call("PING")
        os.kill(own_valkey.process.pid, signal.SIGSTOP)
        try:
            found = await asyncio.gather(*(redis.call("PING") for _ in range(100)), return_exceptions=True)
        finally:
            os.kill(own_valkey.process.pid, signal.SIGCONT)
        assert {type(each) for each in found} == {RedisTimeoutError}
        assert await redis.call("PING") == "PONG"


def test_a_silence_that_is_looked_at_a_moment_early_ends_on_uvloop(own_valkey: EmbeddedValkey) -> None:
    """uvloop's timers may fire a fraction of a millisecond early, and one for so short a rest has no time of its own:
    the check raised AttributeError, nothing looked again, and every request to this gateway hung with the Redis."""

    async def ask_the_silent() -> None:
        assert own_valkey.process is not None
        async with connect(own_valkey.url, 0.5) as redis:
            connection = redis.own_connection()
            await connection.call(("PING",))
            os.kill(own_valkey.process.pid, signal.SIGSTOP)
            try:
                command = asyncio.create_task(connection.call(("PING",)))
                while connection._link is None or connection._link._timer is None:
                    await asyncio.sleep(0)
                connection._link._timer.cancel()
                connection._link._wait(0.0003)
                async with asyncio.timeout(10):
                    with pytest.raises(RedisTimeoutError):
                        await command
            finally:
                os.kill(own_valkey.process.pid, signal.SIGCONT)

    uvloop.run(ask_the_silent())


async def test_an_idle_connection_is_replaced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall may have forgotten it, and the first request after a pause would wait for the timeout."""
    async with connect(settings.redis_url, 5.0) as redis:
        first = await redis.call("CLIENT", "ID")
        assert await redis.call("CLIENT", "ID") == first
        monkeypatch.setattr(shared, "IDLE_S", 0.0)
        assert await redis.call("CLIENT", "ID") != first


async def test_a_transaction_raises_the_error_of_its_command(settings: Settings) -> None:
    """Commands of others on the same connection stay outside of it."""
    async with connect(settings.redis_url, 5.0) as redis:
        await redis.call("SET", "{t}text", "x")
        transaction = redis.transaction_of([("INCR", "{t}count"), ("HSET", "{t}text", "a", 1)])
        others = [redis.call("ECHO", "a"), redis.call("INCR", "{t}other")]
        found = await asyncio.gather(transaction, *others, return_exceptions=True)
        assert isinstance(found[0], ResponseError) and found[1:] == ["a", 1]
        await redis.transaction_of([("INCR", "{t}count")])
        assert await redis.call("GET", "{t}count") == "2"
        await redis.call("DEL", "{t}text", "{t}count", "{t}other")


async def test_a_replica_refuses_each_of_many_writes_by_its_reason(own_valkey: EmbeddedValkey) -> None:
    """A refused command closed the connection under the others; once that had happened to each of its tries, a command
    was told that Redis does not answer."""
    async with connect(own_valkey.url, 5.0) as redis:
        await redis.call("REPLICAOF", "127.0.0.1", "1")

        async def write_again_and_again() -> list[object]:
            found = [await asyncio.gather(redis.call("SET", "a", 1), return_exceptions=True) for _ in range(20)]
            return [error for [error] in found]

        found = await asyncio.gather(*(write_again_and_again() for _ in range(20)))
        assert {type(error) for errors in found for error in errors} == {ReadOnlyError}


async def test_a_reply_to_no_command_is_not_taken_for_the_next_ones(settings: Settings) -> None:
    """A reply that arrived while none was owed stayed in the parser, and every later one went to the wrong command."""
    async with connect(settings.redis_url, 5.0) as redis:
        connection = redis.own_connection()
        assert await connection.call(("ECHO", "before")) == "before"
        assert connection._link is not None
        connection._link.data_received(b"+surprise\r\n")
        assert [await connection.call(("ECHO", str(number))) for number in range(3)] == ["0", "1", "2"]
