"""Every setting of the service in one table, read once from FLUID_* environment variables.

`python -m server.cli.settings_page` prints the table as docs/configuration.md.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from server.addresses import parse_results
from server.connection_settings import ConnectionSettings
from server.setting_values import DEFAULT_ENGINE, PREFIX, data_folder, read, rows_of, setting

_jobs = partial(setting, group="Jobs")
_worker = partial(setting, group="Worker and model")
_access = partial(setting, group="Access and limits")
_webhooks = partial(setting, group="Webhooks")
_logging = partial(setting, group="Logging")
_traces = partial(setting, group="Traces")


@dataclass(frozen=True, slots=True)
class Settings(ConnectionSettings):
    """One field per setting; its environment variable is FLUID_ and the field's name in capitals."""

    max_queue: int = _jobs(
        10000, "Jobs that may wait for one model; further requests for it get 429 queue_full.", unit="jobs", at_least=1
    )
    queue_share: float = _jobs(
        0.5,
        "Largest share of a model's places, without those that other API keys hold, that one key may hold: beyond it "
        "requests get 429, and lines of batches wait. 1 is no limit.",
        at_least=0.001,
        at_most=1,
    )
    ageing_s: float = _jobs(
        60.0,
        "A job that has waited this long moves up from low to normal, and from normal to high if jobs of high wait.",
        unit="seconds",
        at_least=0.1,
    )
    lease_s: float = _jobs(
        10.0,
        "A worker that does not renew a job's lease for this long loses the job to another worker.",
        unit="seconds",
        at_least=0.5,
    )
    max_attempts: int = _jobs(
        3, "Attempts before a job fails for good and becomes a dead letter.", unit="attempts", at_least=1
    )
    result_ttl_s: int = _jobs(3600, "How long a finished job and its images are kept.", unit="seconds", at_least=1)
    result_cache_s: int = _jobs(
        0, "How long a request with a seed gets the images of an equal one; 0 is off.", unit="seconds", at_least=0
    )
    results: str = _jobs(
        "redis",
        "Where images and uploads lie: redis, s3://bucket/prefix (credentials from AWS_* variables) or file:///folder "
        "(shared by all hosts). The last two need the extra storage.",
        check=parse_results,
    )
    result_links: str = _jobs(
        "proxy",
        "Links to images in s3:// in responses with response_format url: to the gateway, or presigned ones to the "
        "bucket, which callers must reach. Both expire after FLUID_LINK_TTL_S.",
        choices=("proxy", "presigned"),
    )
    batch_ttl_s: int = _jobs(
        86400,
        "How long uploaded files are kept, and batches and their images after the batch's end.",
        unit="seconds",
        at_least=1,
    )
    drain_s: float = _jobs(
        30.0, "Time for the gateway and the workers to finish running work after SIGTERM.", unit="seconds", at_least=0
    )

    checkpoint: str = _worker(
        "atlas-128",
        "The shipped checkpoint (atlas-128), or a checkpoint folder; of `fluid serve`, several: a,b.",
    )
    engine: str = setting(DEFAULT_ENGINE, "Function that loads the engine, module:function.")
    device: str = _worker(
        "auto", "Device the model runs on; auto is cuda if there is a CUDA device.", choices=("auto", "cpu", "cuda")
    )
    dtype: str = _worker(
        "auto",
        "Precision of matrix products; auto is bfloat16 if the hardware has it; int8 halves the weights.",
        choices=("auto", "float32", "bfloat16", "int8"),
    )
    kernels: str = _worker(
        "auto",
        "Implementation of the diffusion head's loop; auto is triton on CUDA and torch elsewhere. `fluid doctor` "
        "shows the one in use.",
        choices=("auto", "torch", "triton"),
    )
    threads: int = _worker(
        0, "CPU threads of a worker; 0 is every CPU that the process may use.", unit="threads", at_least=0
    )
    tensor_parallel: int = _worker(1, "Devices that share one model, by tensor parallelism.", at_least=1, at_most=64)
    max_rows: int = _worker(
        16,
        "Batch size: images that a worker decodes together. More rows raise throughput, memory use and latency.",
        unit="images",
        at_least=1,
        at_most=4096,
    )
    snapshot_steps: int = _worker(
        8,
        "Autoregressive steps between snapshots of an unfinished image, at most five a second, from which another "
        "worker resumes; 0 takes none.",
        unit="steps",
        at_least=0,
    )
    step_timeout_s: float = _worker(
        120.0,
        "A worker whose engine is stuck in one step for this long exits; its jobs are requeued.",
        unit="seconds",
        at_least=0.5,
    )

    api_keys_file: str = _access(
        "",
        "File with one API key hash per line, made by `fluid keys new`; reread when it changes. Without this and "
        "FLUID_API_KEYS the service needs no key.",
    )
    api_keys: str = _access(
        "", "The lines of such a file, separated by semicolons, where no file can be mounted.", secret=True
    )
    rate_limit: int = _access(
        0,
        "Requests that generate or upload, per API key; more get 429. 0 is unlimited; more needs API keys.",
        unit="per minute",
        at_least=0,
    )
    max_jobs: int = _access(
        0,
        "Jobs of one API key that may wait or run at a time; more get 429. 0 is unlimited; more needs API keys.",
        unit="jobs",
        at_least=0,
    )
    max_batches: int = _access(
        100, "Unfinished batches of one API key; more get 429. 0 is unlimited.", unit="batches", at_least=0
    )
    max_batch_lines: int = _access(
        256, "Lines of a key's batches for one model that wait or run; the others wait.", unit="lines", at_least=1
    )
    max_key_mib: int = _access(
        1024,
        "Memory of Redis that jobs, images, files and batches of one API key may take; more get 429. 0 is unlimited.",
        unit="MiB",
        at_least=0,
    )
    max_webhooks: int = _access(
        10000, "Webhooks of one API key that are not delivered yet; more get 429. 0 is unlimited.", at_least=0
    )
    max_key_streams: int = _access(
        100, "Open event streams of one API key, per gateway; more get 429. 0 is unlimited.", at_least=0
    )
    max_streams: int = _access(1000, "Open event streams of a gateway; more get 429.", at_least=1)
    read_rate_limit: int = _access(
        6000, "GET requests of one API key, per gateway; more get 429. 0 is unlimited.", unit="per minute", at_least=0
    )
    link_ttl_s: int = _access(3600, "How long links to images open without an API key.", unit="seconds", at_least=1)
    metrics_access: str = _access(
        "open", "Access to /metrics: open to everyone, or with an API key.", choices=("open", "key")
    )
    api_key: str = _access(
        "",
        "API key that `fluid batch`, `edit`, `vary`, `eval` and the Python clients send to the service.",
        secret=True,
    )

    webhook_secret: str = _webhooks(
        "",
        "Secret that signs webhooks: whsec_ and base64 of 24 to 64 bytes. If empty, a job with a webhook gets 400.",
        secret=True,
    )
    webhook_private: str = _webhooks(
        "refuse", "Webhooks to private and loopback addresses.", choices=("refuse", "allow")
    )

    log_level: str = _logging("info", "Least severe messages to log.", choices=("debug", "info", "warning", "error"))
    log_prompts: str = _logging("no", "Whether the gateway logs prompts.", choices=("no", "yes"))
    log_format: str = _logging("text", "Log lines as text, or as JSON with trace and job id.", choices=("text", "json"))
    traces_url: str = _traces(
        "",
        "OTLP/HTTP endpoint of spans: http://collector:4318/v1/traces. If empty, none. Needs the extra otel.",
        begins=("http://", "https://"),
    )
    traces_ratio: float = _traces(
        0.1, "Share of requests that are traced; a traceparent decides instead.", at_least=0, at_most=1
    )
    fake_step_ms: float = setting(2.0, "Time of one step of the fake engine.", unit="milliseconds", at_least=0)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> "Settings":
        """Read the FLUID_* variables; an override that is neither None nor empty wins over its variable.

        Raises:
            SettingError: an unknown name or an invalid value.
        """
        return cls(**read(fields(cls), os.environ if environ is None else environ, overrides))

    def to_env(self) -> dict[str, str]:
        """The environment variables that give a child process exactly these settings."""
        return {PREFIX + f.name.upper(): str(getattr(self, f.name)) for f in fields(self)}

    @property
    def data_path(self) -> Path:
        """Folder of the embedded Valkey. Raises SettingError where there is no home folder to put it in."""
        return data_folder(self.data_dir)

    @property
    def wants_keys(self) -> bool:
        return bool(self.api_keys or self.api_keys_file)


def describe() -> Iterator[tuple[str, str, str]]:
    """Yield (variable, default with its unit, meaning with its choices) of every setting that users may set."""
    return rows_of(fields(Settings))
