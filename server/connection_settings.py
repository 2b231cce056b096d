"""Settings of the gateway's HTTP side and of Redis: the first groups of the table in settings.py."""

from dataclasses import dataclass
from functools import partial

from server.addresses import parse_host, parse_redis_url, url_host
from server.setting_values import setting

_gateway = partial(setting, group="Gateway")
_redis = partial(setting, group="Redis")


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What the gateway listens on and answers to, and how the queue is reached."""

    host: str = _gateway(
        "127.0.0.1",
        "Address the gateway listens on, IPv4 or IPv6; 0.0.0.0 or :: accepts connections from the network.",
        check=parse_host,
    )
    port: int = _gateway(8000, "Port the gateway listens on.", at_least=1, at_most=65535)
    public_url: str = _gateway(
        "",
        "Base URL of the links to images in responses. If empty, the URL that each request was sent to.",
        begins=("http://", "https://"),
    )
    request_timeout_s: float = _gateway(
        300.0,
        "Longest wait of a request that generates synchronously; then its job is canceled and it gets 504.",
        unit="seconds",
        at_least=1,
    )
    body_timeout_s: float = _gateway(
        30.0,
        "Time for a request's body to arrive, then 408. A large body may take longer if it sends 128 KiB per second.",
        unit="seconds",
        at_least=0.5,
    )
    allowed_hosts: str = _gateway(
        "",
        "Host names, beside loopback ones and FLUID_PUBLIC_URL's, that a service without API keys answers to, "
        "separated by commas: images.example, *.example; * is every name. With API keys every name is answered.",
    )
    cors_origins: str = _gateway(
        "",
        "Origins whose web pages may call the API from a browser, separated by commas: https://app.example. Pages of "
        "other origins can change nothing.",
    )

    default_model: str = _gateway(
        "", "Model of requests that name none. If empty, the first of `fluid serve`, else the first by name that is up."
    )
    model_aliases: str = _gateway(
        "", "Further names of models, for clients that send a fixed one: dall-e-3=atlas-128,gpt-image-1=atlas-128."
    )
    size_policy: str = _gateway(
        "refuse",
        "A size that the model does not have: refuse it with 400, or generate the nearest one with a warning.",
        choices=("refuse", "nearest"),
    )
    response_format: str = _gateway(
        "b64_json",
        "Form of images in responses whose request does not choose one. Streams, and requests for a model named "
        "gpt-image..., get b64_json in any case, as from OpenAI.",
        choices=("b64_json", "url"),
    )

    redis_url: str = _redis(
        "",
        "A redis://, rediss:// or unix:// URL, or redis+sentinel:// or rediss+sentinel://. If empty, `fluid serve` "
        "starts an embedded Valkey.",
        check=parse_redis_url,
        secret=True,
    )
    namespace: str = _redis("fluid", "Prefix of every Redis key, so that several services can share one Redis.")
    data_dir: str = _redis(
        "", "Folder of the embedded Valkey's data. If empty, fluid-serve in $XDG_DATA_HOME or ~/.local/share."
    )
    max_mib: int = _redis(
        0,
        "Memory of Redis that jobs, images, files and batches may take; more get 429. 0 is three quarters of Redis' "
        "maxmemory, or unlimited without one.",
        unit="MiB",
        at_least=0,
    )
    valkey_mib: int = _redis(
        0,
        "Memory (maxmemory) of the embedded Valkey, which refuses writes beyond it. 0 is a quarter of the memory that "
        "the machine or container has.",
        unit="MiB",
        at_least=0,
    )
    fsync: str = _redis(
        "always",
        "How often the embedded Valkey syncs to disk. everysec is faster, and loses up to a second of accepted jobs "
        "if the machine crashes.",
        choices=("always", "everysec"),
    )
    replicas: int = _redis(
        0,
        "Replicas of Redis that must have an accepted job on disk before its 2xx; else it gets 503 not_replicated. "
        "Redis before 7.2 has no WAITAOF, and WAIT waits for their memory only. 0 waits for none.",
        unit="replicas",
        at_least=0,
    )
    replica_timeout_s: float = _redis(
        2.0, "Longest wait of a request for FLUID_REPLICAS.", unit="seconds", at_least=0.05
    )

    @property
    def base_url(self) -> str:
        return f"http://{url_host(self.host)}:{self.port}"
