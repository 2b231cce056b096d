"""Retry policy: which requests to retry, and after how long."""

import email.utils
import random
import ssl
import time

import httpx

#: Too many requests, or no gateway or worker for the moment. Not 500: that job has used up its attempts on the server.
RETRIED = (429, 502, 503, 504)

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 8.0
#: Give up, rather than sleep, when Retry-After is longer than this.
LONGEST_RETRY_AFTER_S = 120.0


def is_permanent(failure: BaseException | None) -> bool:
    """Return whether a failed request fails the same way each time: a request that cannot be sent, or bad TLS."""
    if isinstance(failure, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        return True
    while failure is not None:
        if isinstance(failure, ssl.SSLError):
            return True
        failure = failure.__cause__ or failure.__context__
    return False


def retry_delay_s(attempt: int, response: httpx.Response | None) -> float | None:
    """Seconds to wait before the next attempt, None to give up. `response` is None if the connection failed."""
    backoff: float = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**attempt) * random.uniform(0.75, 1.0)
    if response is None:
        return backoff
    if response.status_code not in RETRIED:
        return None
    retry_after_s = _parse_retry_after(response.headers.get("retry-after", ""))
    if retry_after_s is None:
        return backoff
    return retry_after_s if retry_after_s <= LONGEST_RETRY_AFTER_S else None


def _parse_retry_after(text: str) -> float | None:
    """Seconds from now; the header is a number of seconds or an HTTP date (RFC 9110)."""
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
