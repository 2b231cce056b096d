"""Hundreds of requests at once, each on a connection of its own: none is refused without a cause."""

from collections.abc import Callable

import pytest

from benchmarks.load.generator import Generator, request_bytes
from tests.server.harness import Service

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
CONNECTIONS, WAVES = 512, 4


async def test_512_connections_get_no_503(new_service: Callable[..., Service]) -> None:
    """80 of 3,121 answers were 503: a connection to Redis per request met the time limit of one command. Waves of 512
    are the worst case: all of them enqueue, wait, and fetch their image at the same moment."""
    service = new_service(max_rows=64, fake_step_ms=1.0, snapshot_steps=0, lease_s=10.0)
    generator = Generator(service.settings.port)
    await generator.open(CONNECTIONS)
    request = request_bytes({"prompt": "an apple", "num_inference_steps": 8})
    try:
        for _ in range(WAVES):
            run = await generator.run(request, [0.0] * CONNECTIONS)
            assert (run.failed, len(run.samples)) == ({}, CONNECTIONS)
            assert run.peak_in_flight == CONNECTIONS
    finally:
        generator.close()
