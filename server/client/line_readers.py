"""Incremental parsers: lines and server-sent events from a response that arrives in chunks."""

import json

from server.client.results import JobEvent


class LineReader:
    """Splits at line feeds only. httpx's own iter_lines also splits at U+2028, which is valid inside JSON strings."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that `chunk` completes."""
        first, *others = chunk.split(b"\n")
        self._parts.append(first)
        lines = []
        for other in others:
            lines.append(b"".join(self._parts).removesuffix(b"\r").decode())
            self._parts = [other]
        return lines


class EventReader:
    """Parses server-sent events line by line (the part of the standard that this service uses)."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> JobEvent | None:
        """Return an event when `line` completes one."""
        if line:
            name, _, value = line.partition(":")
            if name:  # a line without a field name is a comment, such as a ping
                self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return JobEvent(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
