"""Host names and Redis URLs: how they stand in a URL, and what of them may be shown."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

#: Listening on one of these is reached through the loopback address of the same family.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
REDIS_SCHEMES = ("redis", "rediss", "unix")
SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}  # and the scheme of the Redis behind them
SENTINEL_PORT = 26379
HIDDEN = "***"


def is_loopback(host: str) -> bool:
    """Return whether a host, as an address with or without brackets or as a name, is this machine's own."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def parse_host(text: str) -> str:
    """Return the host of FLUID_HOST without the brackets that an IPv6 address has in URLs.

    Raises:
        ValueError: it is no host name and no address.
    """
    host = text.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ValueError("must be a host without a port, for example 127.0.0.1 or ::1") from error
    elif "/" in host or any(letter.isspace() for letter in host):
        raise ValueError("must be a host, for example 127.0.0.1 or ::1")
    return host


def url_host(host: str) -> str:
    """Return the host under which a service that listens on `host` is reached, as it stands in a URL."""
    reached = _ANY.get(host, host)
    return f"[{reached}]" if ":" in reached else reached


def parse_redis_url(text: str) -> str:
    """Return the URL if redis-py can use it.

    Raises:
        ValueError: it cannot; the message has the remedy and nothing of a password.
    """
    text = text.strip()
    scheme, separator, _ = text.partition("://")
    if scheme in SENTINEL_SCHEMES:
        SentinelUrl.parse(text)
        return text
    if not separator or scheme not in REDIS_SCHEMES:
        raise ValueError(
            "must begin with redis://, rediss://, unix:// or redis+sentinel://, for example redis://localhost:6379"
        )
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises ValueError
    except ValueError:
        parts = None
    if parts is None or parts.fragment or (scheme != "unix" and not _is_database(parts.path)):
        raise ValueError(
            "is not of the form redis://USER:PASSWORD@HOST:PORT/DATABASE. Special characters of a "
            "password must be escaped: / as %2F, # as %23, ? as %3F, @ as %40"
        )
    if scheme == "unix" and not parts.path:
        raise ValueError("needs the path of a socket, for example unix:///run/redis.sock")
    return text


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """The parts of redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DATABASE?OPTIONS."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    redis_url: str  #: everything about the Redis behind them, with a host that stands for the primary
    tls: bool

    @classmethod
    def parse(cls, text: str) -> "SentinelUrl":
        """Raises ValueError if it has another form; the message has nothing of a password."""
        try:
            parts = urlsplit(text)
            user, at, hosts = parts.netloc.rpartition("@")
            found = tuple(_host_and_port(host) for host in hosts.split(","))
        except ValueError:
            parts, found = None, ()
        service, _, database = parts.path.lstrip("/").partition("/") if parts else ("", "", "")
        if parts is None or not service or parts.fragment or not _is_database(f"/{database}"):
            raise ValueError(
                "is not of the form redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DATABASE, where SERVICE "
                "is the name of the primary in the configuration of Sentinel. Special characters of a password must be "
                "escaped: / as %2F, # as %23, ? as %3F, @ as %40"
            )
        scheme = SENTINEL_SCHEMES[parts.scheme]
        query = f"?{parts.query}" if parts.query else ""
        return cls(found, service, f"{scheme}://{user}{at}primary/{database}{query}", scheme == "rediss")


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path:
        raise ValueError("no host")
    return parts.hostname, parts.port or SENTINEL_PORT


def _is_database(path: str) -> bool:
    return path in ("", "/") or path[1:].isdecimal()


def without_password(url: str) -> str:
    """Return the URL with *** for its password; passwords among its options are left out with all the options."""
    try:
        parts = urlsplit(url)
        user, has_user, host = parts.netloc.rpartition("@")
    except ValueError:
        return HIDDEN
    name, has_password, _ = user.partition(":")
    if has_password:
        name = f"{name}:{HIDDEN}"
    return f"{parts.scheme}://{name}{has_user}{host}{parts.path}"  # geturl drops the slashes of unix://


def url_passwords(url: str) -> set[str]:
    """Return the passwords in a URL and its options, as they are written there and decoded."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        written = {parts.password or ""}
    except ValueError:
        return set()
    return written | {unquote(text) for text in written} | {v for name, v in options.items() if "password" in name}


def parse_results(text: str) -> str:
    """Return FLUID_RESULTS if it names a place for images.

    Raises:
        ValueError: it does not; the message has the remedy.
    """
    text = text.strip()
    url = urlsplit(text)
    if text == "redis" or results_folder(text) is not None:
        return text
    if url.scheme == "s3" and url.hostname and not (url.username or url.password or url.query or url.fragment):
        return text.rstrip("/")
    raise ValueError(
        "must be redis, s3://bucket/prefix or file:///folder; credentials belong into AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY"
    )


def results_folder(text: str) -> Path | None:
    """Return the folder of a FLUID_RESULTS that begins with file://; None of any other."""
    url = urlsplit(text)
    is_folder = url.scheme == "file" and not url.netloc and len(url.path) > 1 and not (url.query or url.fragment)
    return Path(unquote(url.path)) if is_folder else None
