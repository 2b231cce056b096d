"""A Redis that refuses: passwords, ACLs, full memory, replicas. The true reason is told, and no password is."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from redis import exceptions
from redis.exceptions import RedisError

from server.cli.demo import free_port
from server.client import FluidClient
from server.errors import ServiceError
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.redis_client import GATEWAY_SOCKET_TIMEOUT_S, config_problems, connect, explain
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.server.harness import Service, child_env, fluid, until

pytestmark = pytest.mark.anyio
DEPLOY = Path(__file__).parents[3] / "docs" / "deploy.md"
PASSWORD = "s3cret-of-redis"


def own_settings(valkey: EmbeddedValkey, user: str = "") -> Settings:
    url = valkey.url.replace("unix://", f"unix://{user}@") if user else valkey.url
    return Settings(redis_url=url, namespace=uuid.uuid4().hex, engine=FAKE_ENGINE, lease_s=1.0, port=free_port())


def command(valkey: EmbeddedValkey, *words: object) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command(*words)


def documented_acl() -> list[str]:
    """The rules of docs/deploy.md, from the line that begins with ~{fluid}*."""
    [line] = [line for line in DEPLOY.read_text().splitlines() if line.startswith("~{fluid}*")]
    return line.split()


def test_the_documented_acl_suffices(valkey: EmbeddedValkey, new_service: Callable[..., Service]) -> None:
    """Operators give no service more than it needs; doctor said that Redis does not answer."""
    namespace, user = uuid.uuid4().hex, f"fluid-{uuid.uuid4().hex}"
    rules = [rule.replace("{fluid}", f"{{{namespace}}}") for rule in documented_acl()]
    command(valkey, "ACL", "SETUSER", user, "on", f">{PASSWORD}", *rules)
    url = valkey.url.replace("unix://", f"unix://{user}:{PASSWORD}@")
    service = new_service(redis_url=url, namespace=namespace)
    assert service.client.generate("a cat", quality="low")
    job = service.client.submit("a cat", num_inference_steps=4)
    assert [event.type for event in service.client.follow(job["id"])][-1] == "succeeded"
    assert list(service.client.jobs(limit=1))
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}\n'
    batch = service.client.submit_batch(line)
    until(lambda: service.client.batch(batch["id"])["status"] == "completed", what="the batch")
    done = fluid(service.settings, "doctor")
    assert done.returncode == 0, done.stdout
    assert PASSWORD not in done.stdout + done.stderr


def test_doctor_tells_a_refused_command_from_silence(valkey: EmbeddedValkey) -> None:
    """A user of Redis without INFO was told that Redis does not respond."""
    user = f"fluid-{uuid.uuid4().hex}"
    command(valkey, "ACL", "SETUSER", user, "on", f">{PASSWORD}", "~*", "&*", "+@all", "-@dangerous")
    done = fluid(own_settings(valkey, f"{user}:{PASSWORD}"), "doctor")
    assert done.returncode == 1
    assert "ACL" in done.stdout and "does not answer" not in done.stdout and "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize("role", ["worker", "doctor", "gateway"])
def test_a_wrong_password_is_told_once_and_not_shown(role: str, valkey: EmbeddedValkey) -> None:
    """The worker's log had it 23 times within seconds, and doctor's report once."""
    settings = own_settings(valkey, f"default:{PASSWORD}")
    command(valkey, "ACL", "SETUSER", "guarded", "on", ">another")
    settings = replace(settings, redis_url=settings.redis_url.replace("default:", "guarded:"), log_level="debug")
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", role],
        env=child_env(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if role == "gateway":
        with FluidClient(settings.base_url, max_retries=0) as client:
            until(lambda: "password" in client.ready()[1], what="the reason")
            with pytest.raises(ServiceError, match="refuses this service's user or password"):
                client.submit("a cat")
        process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == {"worker": 2, "doctor": 1, "gateway": process.returncode}[role], output
    assert "password" in output
    assert PASSWORD not in output


async def test_a_refused_password_is_not_retried(valkey: EmbeddedValkey) -> None:
    """To redis-py it is a failed connection, and was tried four times."""
    command(valkey, "ACL", "SETUSER", "guarded", "on", ">another")
    command(valkey, "ACL", "LOG", "RESET")
    async with connect(own_settings(valkey, "guarded:wrong").redis_url, GATEWAY_SOCKET_TIMEOUT_S) as client:
        with pytest.raises(exceptions.AuthenticationError):
            await client.ping()
    with redis.Redis.from_url(valkey.url) as admin:
        [entry] = admin.acl_log()
        assert int(entry["count"]) == 1


def test_no_password_is_in_the_arguments_of_a_process(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Every user of the machine can read them."""
    user = f"fluid-{uuid.uuid4().hex}"
    command(valkey, "ACL", "SETUSER", user, "on", f">{PASSWORD}", "~*", "&*", "+@all")
    settings = own_settings(valkey, f"{user}:{PASSWORD}")
    words = [sys.executable, "-m", "server.cli", "serve", "--quiet"]
    service = subprocesses.spawn(words, env=child_env(settings))
    try:
        with FluidClient(settings.base_url) as client:
            client.wait_ready(timeout_s=60)
        seen = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
        assert any(b"gateway" in each for each in seen)
        assert not any(PASSWORD.encode() in each for each in seen)
    finally:
        subprocesses.stop(service, grace_s=30)


@pytest.mark.parametrize(
    ("words", "reason", "remedy"),
    [
        (["CONFIG", "SET", "maxmemory", "1"], "is full: Redis has used its maxmemory", "maxmemory"),
        (["REPLICAOF", "127.0.0.1", "1"], "read-only replica", "primary"),
    ],
)
def test_a_redis_that_refuses_writes_is_told_by_its_reason(
    own_valkey: EmbeddedValkey, words: list[str], reason: str, remedy: str
) -> None:
    """The 503 said that the queue does not answer, while doctor said that all is well."""
    service = Service(own_settings(own_valkey))
    try:
        service.add_worker()
        service.client.wait_ready(timeout_s=60)
        command(own_valkey, *words)
        with pytest.raises(ServiceError, match=reason) as refused:
            service.client.submit("a cat")
        assert refused.value.code == "queue_unavailable"
        done = fluid(service.settings, "doctor")
        assert done.returncode == 1
        assert reason in done.stdout and remedy in done.stdout
    finally:
        service.close()


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("maxmemory-policy", "allkeys-lru", "lets Redis evict jobs"),
        ("appendonly", "no", "does not persist"),
        ("maxmemory", "1", "is full"),
        ("maxmemory", "0", "no maxmemory"),
    ],
)
async def test_the_gateway_warns_at_its_start_of_what_breaks_its_promise(
    own_valkey: EmbeddedValkey, name: str, value: str, warning: str
) -> None:
    """Only doctor told it, although "a 2xx is on disk" was no longer true."""
    command(own_valkey, "CONFIG", "SET", name, value)
    settings = own_settings(own_valkey)
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "gateway"], env=child_env(settings), stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        deadline = time.monotonic() + 60
        while warning not in (line := process.stderr.readline()):
            assert line and time.monotonic() < deadline
        assert "WARNING" in line
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_redis_without_maxmemory_gets_advice() -> None:
    """It grew until the system killed it. That is no failure yet: doctor's exit status stays 0."""
    good = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "maxmemory": "1073741824"}
    assert list(config_problems(good)) == []
    (problem,) = config_problems(good | {"maxmemory": "0"})
    assert not problem.severe and "maxmemory" in problem.remedy


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exceptions.OutOfMemoryError("command not allowed"), "is full"),
        (exceptions.ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: x"), "is full"),
        (exceptions.ResponseError("READONLY You can't write against a read only replica."), "read-only replica"),
        (exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "disk"),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), "replicas"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "loading"),
        (exceptions.NoPermissionError("this user has no permissions"), "user of Redis"),
        (exceptions.AuthenticationError("invalid"), "password"),
        (exceptions.MovedError("12 127.0.0.1:7001"), "another node"),
        (exceptions.ClusterDownError("Hash slot not served"), "Cluster"),
        (exceptions.ConnectionError("max number of clients reached"), "maxclients"),
        (exceptions.ResponseError("ERR unknown command"), "refuses a command"),
        (exceptions.ConnectionError("Error 111 connecting to 10.0.0.9:6379."), "does not answer"),
        (exceptions.TimeoutError("Timeout reading from 10.0.0.9:6379"), "does not answer"),
    ],
)
def test_every_kind_of_error_has_its_reason(error: RedisError, expected: str) -> None:
    """All of them were "does not answer"; none may name the address."""
    meaning, remedy = explain(error)
    assert expected in meaning and remedy
    assert "10.0.0.9" not in meaning and "127.0.0.1" not in meaning
