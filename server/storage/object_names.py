"""Names of stored objects: NAMESPACE/HOUR/JOB/TOKEN-INDEX.FORMAT, where HOUR is the one in which the object expires.

The name says when an object may go, so no list of objects is kept: a sweep reads the names of the hours that have
passed. That also finds the objects of attempts that were lost. Each attempt has a token of its own, as in Redis: a
worker that lost its lease overwrites nothing.

Uploads, which are source images of edits and files, have no such end, because a job may wait for any time: they are
NAMESPACE=uploads/ID-NUMBER, and Redis holds when each is deleted. No namespace has "=" in its part of a name.
"""

import secrets
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

_HOUR = "%Y-%m-%dT%H"


def root_of(namespace: str) -> str:
    """The first part of the names of a service's objects, which a rule of a bucket's lifecycle can name."""
    return quote(namespace, safe="")


def object_name(namespace: str, job_id: str, token: int, index: int, suffix: str, expires_at: float) -> str:
    """Name of an image's object. `expires_at`: seconds since the epoch, rounded up to a full hour."""
    hour = datetime.fromtimestamp(expires_at, UTC) + timedelta(hours=1)
    return f"{root_of(namespace)}/{hour:{_HOUR}}/{job_id}/{token}-{index}.{suffix}"


def uploads_of(namespace: str) -> str:
    """What the names of a service's uploads have before the last "/"."""
    return f"{root_of(namespace)}=uploads"


def upload_name(namespace: str, owner_id: str) -> str:
    """A new name of the object of a job's source image or of a file; no other upload ever has it."""
    return f"{uploads_of(namespace)}/{owner_id}-{secrets.token_hex(8)}"


def owner_of(name: str) -> str:
    """The id of the job or file that an upload belongs to."""
    return name.rpartition("/")[2].rpartition("-")[0]


def expires_at(name: str) -> float | None:
    """When what lies under this name expires, in seconds since the epoch; None if it is no name of ours."""
    parts = name.split("/")
    try:
        return datetime.strptime(parts[1], _HOUR).replace(tzinfo=UTC).timestamp()
    except (IndexError, ValueError):
        return None
