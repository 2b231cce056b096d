"""A proxy that forwards requests to a service and keeps their bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx

from tests.server.harness import http_server

Body = dict[str, Any]


@dataclass
class Recording:
    """What a client sent; `requests` are {"path", "json"} or {"path", "form", "files"}."""

    url: str = ""
    requests: list[Body] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


def parse(path: str, content_type: str, body: bytes) -> Body:
    """A request without what differs from call to call: boundaries, file names and bytes."""
    if content_type.startswith("application/json"):
        return {"path": path, "json": json.loads(body)}
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    fields: dict[str, str] = {}
    files: list[str] = []
    for part in message_from_bytes(head + body, policy=policy.HTTP).iter_parts():  # type: ignore[attr-defined]
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is None:
            fields[name] = part.get_payload(decode=True).decode()
        else:
            files.append(name)
    return {"path": path, "form": fields, "files": files}


@contextmanager
def recording(service_url: str) -> Iterator[Recording]:
    """Forward to `service_url`, and record every POST."""
    kept = Recording()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._forward(b"")

        def do_POST(self) -> None:
            if "chunked" in self.headers.get("transfer-encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["content-length"]))
            kept.requests.append(parse(self.path, self.headers["content-type"], body))
            self._forward(body)

        def _forward(self, body: bytes) -> None:
            passed = {"content-type", "authorization", "accept", "user-agent", "host"}
            headers = {name: value for name, value in self.headers.items() if name.lower() in passed}
            answer = httpx.request(self.command, service_url + self.path, content=body, headers=headers)
            kept.answers.append(f"{answer.status_code} {answer.text[:300]}")
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers.get("content-type", ""))
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Proxy) as server:
        kept.url = f"http://127.0.0.1:{server.server_port}"
        yield kept
