"""A self-contained page and the Content-Security-Policy that lets it load and run nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi.responses import HTMLResponse


class Page:
    """An HTML page whose styles and scripts are inline. The policy allows exactly those, by their hashes."""

    def __init__(self, html: str) -> None:
        self.html = html
        self.policy = content_security_policy(html)

    def response(self) -> HTMLResponse:
        # Without no-cache a browser may keep the page of an earlier version, whose requests this one refuses.
        return HTMLResponse(self.html, headers={"Content-Security-Policy": self.policy, "Cache-Control": "no-cache"})


def content_security_policy(html: str) -> str:
    """Return the policy of a self-contained page: only its own scripts and styles, and only requests to this host."""
    return (
        f"default-src 'none'; script-src {_hashes('script', html)}; style-src {_hashes('style', html)}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(tag: str, html: str) -> str:
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
