"""LitServe: batches by `max_batch_size` and `batch_timeout`, the faster queue for over 100 requests/s, and workers that
are restarted.

python -m benchmarks.peers.servers.litserve_app PORT

LitServe reads the body's type from the annotation of `decode_request`, which must not be a string.
"""

import sys
from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import Response

from benchmarks.peers.servers.body import Body
from benchmarks.peers.servers.work import PATH, ROWS, Images

BATCH_TIMEOUT_S = 0.01


class ImageApi(litserve.LitAPI):
    """One inference worker: LitServe calls these methods in its own process."""

    def setup(self, device: str) -> None:
        self.images = Images()

    def decode_request(self, request: Body) -> dict[str, Any]:
        return request.model_dump()

    def batch(self, inputs: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        return inputs

    def predict(self, x: Sequence[dict[str, Any]]) -> list[bytes]:
        return self.images.generate(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = ImageApi(max_batch_size=ROWS, batch_timeout=BATCH_TIMEOUT_S, api_path=PATH)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, timeout=120, fast_queue=True, restart_workers=True
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
