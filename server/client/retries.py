"""When to try a request again, and how long to wait before."""

import email.utils
import random
import time

import httpx

#: Too many, or nobody there just now. A 500 is a job that failed after its own tries: another would end the same way.
RETRIED = (429, 502, 503, 504)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
#: Who is asked to stay away longer than this would rather hear of it.
LONGEST_RETRY_AFTER_S = 120.0


def pause_s(attempt: int, answer: httpx.Response | None) -> float | None:
    """How long to wait before the next try; None: there is no point in one. `answer` is None if there was none."""
    backoff: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.75, 1.0)
    if answer is None:
        return backoff
    if answer.status_code not in RETRIED:
        return None
    asked = _retry_after_s(answer.headers.get("retry-after", ""))
    if asked is None:
        return backoff
    return asked if asked <= LONGEST_RETRY_AFTER_S else None


def _retry_after_s(text: str) -> float | None:
    """RFC 9110: seconds, or a date."""
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
