"""Lines and server-sent events from a response that arrives in pieces."""

import json

from server.client.results import JobEvent


class LineReader:
    """Lines that end in a line feed alone: httpx's own also end at U+2028, which JSON has inside strings."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, piece: bytes) -> list[str]:
        """The lines that `piece` ends."""
        first, *others = piece.split(b"\n")
        self._parts.append(first)
        whole = []
        for other in others:
            whole.append(b"".join(self._parts).removesuffix(b"\r").decode())
            self._parts = [other]
        return whole


class EventReader:
    """Server-sent events, line by line (the part of the standard that this service uses)."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> JobEvent | None:
        """An event when `line` is the one that ends it."""
        if line:
            name, _, value = line.partition(":")
            if name:  # else it is a comment, as pings are
                self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return JobEvent(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
