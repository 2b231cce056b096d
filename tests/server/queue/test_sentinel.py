"""Sentinel with real processes: gateway and worker follow the primary that it appoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.asyncio.sentinel import MasterNotFoundError

from benchmarks.chaos.redis_pair import RedisPair
from server.addresses import SentinelUrl, without_password
from server.cli.demo import free_port
from server.launcher import subprocesses
from server.launcher.embedded_valkey import find_binary
from server.queue.redis_client import GATEWAY_SOCKET_TIMEOUT_S, connect, explain
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.server.harness import Service, fluid, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[RedisPair]:
    with RedisPair(tmp_path) as running:
        yield running


@pytest.fixture
def sentinel(pair: RedisPair, tmp_path: Path) -> Iterator[int]:
    """Return the port of a Sentinel that watches the pair as "main"."""
    port = free_port()
    config = tmp_path / "sentinel.conf"
    lines = (
        f"port {port}", f"dir {tmp_path}", f"sentinel monitor main 127.0.0.1 {pair.primary.port} 1",
        "sentinel down-after-milliseconds main 4000", "sentinel failover-timeout main 9000",
    )  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    process = subprocesses.spawn([find_binary(), str(config), "--sentinel"], quiet=True)
    try:
        until(lambda: _replicas(port) == 1, what="the Sentinel")
        yield port
    finally:
        subprocesses.stop(process, grace_s=10)


def _ask(port: int, *words: str) -> object:
    with redis.Redis(port=port, decode_responses=True, socket_timeout=5) as client:
        return client.execute_command(*words)


def _replicas(port: int) -> int:
    try:
        found = _ask(port, "SENTINEL", "REPLICAS", "main")
    except redis.RedisError:
        return 0
    assert isinstance(found, list)
    return sum("s_down" not in str(each) for each in found)


def _primary(port: int) -> int:
    found = _ask(port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
    assert isinstance(found, list | tuple)
    return int(found[1])


def _ended(pair: RedisPair) -> int:
    """Number of jobs that the former replica knows to have ended."""
    return int(str(pair.replica.command("ZCARD", "{fluid}:ended")))


def _generated(service: Service) -> bool:
    try:
        return bool(service.client.generate("a cat"))
    except Exception:
        return False


@pytest.mark.slow
def test_the_service_follows_sentinel(pair: RedisPair, sentinel: int) -> None:
    """A planned failover, which leaves the former primary running as a replica, and then the loss of the new one."""
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel}/main"  # the first one is down
    service = Service(Settings(redis_url=url, engine=FAKE_ENGINE, lease_s=1.0, port=free_port()))
    try:
        service.add_worker()
        service.client.wait_ready(timeout_s=60)
        assert service.client.generate("a cat")
        assert fluid(service.settings, "doctor").returncode in (0, 1)
        _ask(sentinel, "SENTINEL", "FAILOVER", "main")
        until(lambda: _primary(sentinel) == pair.replica.port, what="the failover")
        before = _ended(pair)  # what is sent within CHECK_S may still go to the former primary, which accepts it
        until(lambda: _generated(service) and _ended(pair) > before, what="an image on the new primary")
        until(lambda: pair.primary.command("ROLE")[0] == "slave", what="the demotion")  # type: ignore[index]
        until(lambda: _replicas(sentinel) == 1, what="the Sentinel to see the former primary as a replica")
        assert pair.replica.process is not None
        pair.replica.process.kill()
        until(lambda: _generated(service), what="an image after the loss of the new primary")
    finally:
        service.close()


@pytest.mark.slow
async def test_a_service_that_sentinel_does_not_know_is_told(pair: RedisPair, sentinel: int) -> None:
    async with connect(f"redis+sentinel://127.0.0.1:{sentinel}/other", GATEWAY_SOCKET_TIMEOUT_S) as client:
        with pytest.raises(MasterNotFoundError) as missing:
            await client.ping()
    meaning, remedy = explain(missing.value)
    assert "Sentinel" in meaning and "FLUID_REDIS_URL" in remedy


async def test_a_sentinel_that_is_down_is_told() -> None:
    async with connect(f"redis+sentinel://127.0.0.1:{free_port()}/main", GATEWAY_SOCKET_TIMEOUT_S) as client:
        with pytest.raises(MasterNotFoundError):
            await client.ping()


def test_the_parts_of_a_url() -> None:
    url = SentinelUrl.parse("rediss+sentinel://u:p%40@a:1,b,[::1]:2/main/3?sentinel_password=s")
    assert url.hosts == (("a", 1), ("b", 26379), ("::1", 2))
    assert (url.service, url.tls) == ("main", True)
    assert url.redis_url == "rediss://u:p%40@primary/3?sentinel_password=s"
    assert (
        without_password("redis+sentinel://u:p@a:1,b/main?sentinel_password=s") == "redis+sentinel://u:***@a:1,b/main"
    )
