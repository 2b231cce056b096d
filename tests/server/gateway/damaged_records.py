"""Damaged records beside the sound ones of a service, for test_state_matrix to plant."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from typing import Any

import redis

from server.model_info import ModelInfo
from server.queue.keys import Keys
from server.worker.engine.fake import FakeEngine
from tests.server.harness import MODEL, Service, until

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}
FAR = 1e12  # a time in the far future
BYTES = b"\x80\xff\x00packed"


class World:
    """A service with one sound record of each kind, and the damaged copies beside them."""

    def __init__(self, service: Service) -> None:
        self.service, self.url = service, service.settings.base_url
        self.keys = Keys(service.settings.namespace)
        self.redis = redis.Redis.from_url(service.settings.redis_url)
        self.job = service.client.wait(service.client.submit("a cat")["id"], timeout_s=60)["id"]
        self.batch = service.client.submit_batch(json.dumps(LINE).encode())["id"]
        until(lambda: service.client.batch(self.batch)["status"] == "completed", what="the batch")
        self.file = service.client.batch(self.batch)["input_file_id"]

    def copy(self, template: Callable[[str], str], sound: str, odd: str, **changes: Any) -> None:
        """Store a record under another id, with changed fields; a change to None deletes the field."""
        self.redis.delete(template(odd))
        self.redis.copy(template(sound), template(odd))
        for name, value in changes.items():
            if value is None:
                self.redis.hdel(template(odd), name)
            else:
                self.redis.hset(template(odd), name, value)


Plant = Callable[[World, str], list[str]]  # plants under an id; returns the paths of that record alone


def job(**changes: Any) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        world.copy(world.keys.job_hash, world.job, odd, id=odd, **changes)
        world.redis.zadd(world.keys.jobs_zset(""), {odd: FAR})
        return [f"/v1/jobs/{odd}", f"/v1/jobs/{odd}/images/0", f"/v1/jobs/{odd}/events"]

    return plant


def job_input(**changes: Any) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        whole = json.loads(world.redis.hget(world.keys.job_hash(world.job), "input") or "")
        return job(input=json.dumps(whole | changes))(world, odd)

    return plant


def waiting(**changes: Any) -> Plant:
    """A damaged job that a worker takes, with one damaged lease beside it."""

    def plant(world: World, odd: str) -> list[str]:
        paths = job(state="queued", **changes)(world, odd)
        keys = world.keys
        world.redis.zadd(keys.callers_zset(MODEL, "normal"), {"": 0})
        world.redis.zadd(keys.waiting_zset(MODEL, "normal", ""), {odd: 0})
        world.redis.zadd(keys.waiting_since_zset(MODEL, "normal"), {odd: 0})
        world.redis.zadd(keys.leases_zset(MODEL), {f"lease-{odd}": 0})
        world.redis.zadd(keys.deadlines_zset, {odd: 0})
        return paths[:1]

    return plant


def waiting_string(world: World, odd: str) -> list[str]:
    """A waiting job whose record is no hash."""
    waiting()(world, odd)
    world.redis.set(world.keys.job_hash(odd), "packed")
    return []


def another_type(key: str, index: str, path: str) -> Plant:
    """A record that is no hash, in the list of its kind: the page used to be a 503."""

    def plant(world: World, odd: str) -> list[str]:
        world.redis.set(getattr(world.keys, key)(odd), "packed")
        world.redis.zadd(getattr(world.keys, index)(""), {odd: FAR})
        return [f"{path}/{odd}"]

    return plant


def batch(**changes: Any) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        world.copy(world.keys.batch_hash, world.batch, odd, **changes)
        world.redis.zadd(world.keys.batch_list(""), {odd: FAR})
        world.redis.zadd(world.keys.batches_zset, {odd: 0})
        return [f"/v1/batches/{odd}", f"/v1/files/file-out-{odd}/content", f"/v1/files/file-err-{odd}/content"]

    return plant


def batch_line(text: str | bytes) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        paths = batch(status="completed", cursor="1", input_file_id=odd)(world, odd)
        data = text if isinstance(text, bytes) else text.encode()
        world.redis.set(world.keys.file_bytes(odd), data)
        world.redis.set(world.keys.batch_index(odd), array("I", [0, len(data)]).tobytes())
        world.redis.hset(world.keys.batch_errors(odd), "0", text)
        return paths

    return plant


def file(**changes: Any) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        world.copy(world.keys.file_hash, world.file, odd, **changes)
        world.redis.zadd(world.keys.file_list(""), {odd: FAR})
        return [f"/v1/files/{odd}", f"/v1/files/{odd}/content"]

    return plant


def webhook(**changes: Any) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        fields = {"url": "http://127.0.0.1:1/", "attempts": "0", "message": "{}"} | changes
        world.redis.delete(world.keys.webhook_hash(odd))
        world.redis.hset(world.keys.webhook_hash(odd), mapping={k: v for k, v in fields.items() if v is not None})
        world.redis.zadd(world.keys.webhooks_zset(""), {odd: 0})
        world.redis.zadd(world.keys.webhook_owners_zset, {"": 0})
        return []

    return plant


def worker(text: str | bytes) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        world.redis.set(world.keys.worker(odd), text)
        world.redis.zadd(world.keys.workers_zset, {odd: FAR})
        world.redis.zadd(world.keys.last_seen_zset, {odd: FAR})
        return []

    return plant


WORKER = {"id": "odd", "state": "ready", "model": "odd", "max_rows": 1, "rows": 0, "started_at": 1.0}
INFO = json.loads(ModelInfo.from_mapping(FakeEngine(1, 0).info()).to_json())


def model(text: str | bytes) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        world.redis.hset(world.keys.models_hash, odd, text)
        return []

    return plant


def fields_of(key: str, **fields: str | bytes) -> Plant:
    """Fields in a hash that is one record for the whole service."""

    def plant(world: World, odd: str) -> list[str]:
        world.redis.hset(getattr(world.keys, key), mapping=fields)
        return []

    return plant


def dead_letter(**fields: str | bytes) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        world.redis.xadd(world.keys.dead_letters_stream, fields)
        return []

    return plant


def event(**fields: str | bytes) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        job()(world, odd)
        world.redis.xadd(world.keys.events_stream(odd), fields)
        return [f"/v1/jobs/{odd}/events"]

    return plant


def resume(**fields: str | bytes) -> Plant:
    def plant(world: World, odd: str) -> list[str]:
        paths = waiting(attempt="1")(world, odd)
        world.redis.hset(world.keys.resume_hash(odd), mapping=fields)
        return paths

    return plant


def request_of(template: str, value: str | bytes | dict[str, str]) -> Plant:
    """A key beside a job: its tombstone, or what an Idempotency-Key stands for."""

    def plant(world: World, odd: str) -> list[str]:
        key = getattr(world.keys, template)
        full = key("", odd) if template == "idempotency_hash" else key(odd)
        if isinstance(value, dict):
            world.redis.hset(full, mapping=value)
        else:
            world.redis.set(full, value)
        return [f"/v1/jobs/{odd}"] if template == "tombstone" else []

    return plant
