"""A loop of pure Python whose work never changes: the unit of processor time that other work is measured in."""

from __future__ import annotations

import json
import time

LINES = 400


def calibrate() -> float:
    """Return the seconds of processor time that the loop takes: dictionaries, text and JSON, as a server's code has."""
    began = time.process_time()
    total = 0
    for number in range(LINES):
        record = {"id": f"job_{number:06d}", "steps": [number * i % 97 for i in range(40)], "text": "an apple" * 4}
        read = json.loads(json.dumps(record))
        total += sum(read["steps"]) + len(read["text"].split("a"))
        total += len({key: str(value).upper() for key, value in sorted(read.items())})
    if total <= 0:
        raise AssertionError("the loop was not run")
    return time.process_time() - began
