"""The requests that common clients send with their defaults, recorded from the clients themselves.

Open WebUI's are read from its source (routers/images.py and config.py of 2026-11): it is a whole application, and no
client that a test could call.
"""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "bodies.json"
#: Settings with which all of them generate an image.
MAPPED = {
    "model_aliases": "dall-e-2=fake, dall-e-3=fake,gpt-image-1=fake",
    "size_policy": "nearest",
    "response_format": "url",
}
#: {"path", "json"} or {"path", "form", "files"}, by program and call.
BODIES: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text())
