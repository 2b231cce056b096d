"""BentoML: a batchable API takes one parameter, so a wrapper service takes requests, as the documentation shows.

bentoml serve benchmarks.peers.servers.bento_app:Gateway
"""

from __future__ import annotations

from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.servers.work import PATH, ROWS, Images

TIMEOUT_S = 120
#: After 100 requests, by default, the wrapper closes its connections with whatever is in flight on them: one request in
#: ten failed here (BentoML 1.4.40, its issue 5544).
CONNECTION = {"max_requests": 10**9, "max_age": 1e9}


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S}, runner_connection=CONNECTION)
class Batches:
    """Collects batches and runs them, in its own process."""

    def __init__(self) -> None:
        self.images = Images()

    @bentoml.api(batchable=True, max_batch_size=ROWS)
    def generate(self, bodies: list[dict[str, Any]]) -> list[bytes]:
        return self.images.generate(bodies)


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S})
class Gateway:
    """The HTTP service."""

    batches = bentoml.depends(Batches)

    @bentoml.api(route=PATH)
    async def generate(
        self, prompt: str, seed: int, num_inference_steps: int | None = None
    ) -> Annotated[bytes, ContentType("image/png")]:
        body = {"prompt": prompt, "seed": seed, "num_inference_steps": num_inference_steps}
        [png] = await self.batches.to_async.generate([body])
        return png
