"""Headers that tell browsers to be careful with a response, and the Content-Security-Policy of the playground."""

import base64
import hashlib
import re

#: On every response: no MIME sniffing, no framing, no referrer, no use by pages of other sites.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def content_security_policy(page: str) -> str:
    """Return the Content-Security-Policy of a self-contained page: only its own scripts may run, allowed by hash."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
