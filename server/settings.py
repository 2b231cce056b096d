"""Every setting of the service in one table, read from FLUID_* once; wrong ones stop the start."""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from server.errors import SettingError

PREFIX = "FLUID_"


def _setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    begins: tuple[str, ...] = (),
) -> Any:
    meta = {
        "help": help, "unit": unit, "choices": choices, "at_least": at_least, "at_most": at_most, "begins": begins,
    }  # fmt: skip
    return field(default=default, metadata=meta)


def _default_data_dir() -> str:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return str(Path(base) / "fluid-serve")


@dataclass(frozen=True, slots=True)
class Settings:
    """One field per setting; the environment variable is FLUID_ + the field's name in capitals."""

    host: str = _setting("127.0.0.1", "Address the gateway listens on; 0.0.0.0 opens it to the network.")
    port: int = _setting(8000, "Port the gateway listens on.", at_least=1, at_most=65535)
    public_url: str = _setting(
        "",
        "Where callers reach the gateway, for links to pictures; empty: as each request addressed it.",
        begins=("http://", "https://"),
    )
    redis_url: str = _setting("", "redis://, rediss:// or unix:// address; empty starts an embedded Valkey.")
    namespace: str = _setting("fluid", "First part of every Redis key, so that services can share a server.")
    data_dir: str = _setting("", "Folder of the embedded Valkey; empty means the user's data folder.")
    fsync: str = _setting(
        "always",
        "When the embedded Valkey writes to disk; everysec is quicker and loses a second when the machine dies.",
        choices=("always", "everysec"),
    )
    checkpoint: str = _setting("scenes-128", "Shipped checkpoint's name, or a path to a checkpoint folder.")
    engine: str = _setting("checkpoint", "What draws: the model, or a fake for tests.", choices=("checkpoint", "fake"))
    device: str = _setting("auto", "Where the model runs.", choices=("auto", "cpu", "cuda"))
    dtype: str = _setting(
        "auto",
        "Of matrix products; auto is bfloat16 where the hardware multiplies it.",
        choices=("auto", "float32", "bfloat16"),
    )
    kernels: str = _setting(
        "auto",
        "What runs the diffusion head's loop; auto is triton on CUDA, torch elsewhere. See `fluid doctor`.",
        choices=("auto", "torch", "triton", "persistent"),
    )
    threads: int = _setting(0, "CPU threads of the worker; 0: as many as it may use.", unit="threads", at_least=0)
    max_rows: int = _setting(16, "Images decoded together in one step.", unit="images", at_least=1, at_most=4096)
    max_queue: int = _setting(10000, "Jobs that may wait; more get 429 queue_full.", unit="jobs", at_least=1)
    ageing_s: float = _setting(60.0, "A job that waited this long goes up one class.", unit="seconds", at_least=0.1)
    lease_s: float = _setting(10.0, "A silent worker loses its jobs after this long.", unit="seconds", at_least=0.5)
    max_attempts: int = _setting(3, "Deliveries of a job before it fails for good.", unit="tries", at_least=1)
    snapshot_steps: int = _setting(8, "AR steps between a row's snapshots; 0 is never.", unit="steps", at_least=0)
    step_timeout_s: float = _setting(
        120.0, "A step that takes longer ends the worker; its jobs go to another.", unit="seconds", at_least=0.5
    )
    result_ttl_s: int = _setting(3600, "How long a finished job and its pictures are kept.", unit="seconds", at_least=1)
    batch_ttl_s: int = _setting(
        86400, "How long files, batches and the pictures of batches are kept.", unit="seconds", at_least=1
    )
    webhook_secret: str = _setting("", "Signs webhooks: whsec_ and base64; empty: no webhooks.")
    webhook_private: str = _setting(
        "refuse", "Whether webhooks may go to private addresses.", choices=("refuse", "allow")
    )
    request_timeout_s: float = _setting(300.0, "Longest wait of a synchronous request.", unit="seconds", at_least=1)
    drain_s: float = _setting(30.0, "Time to finish running work after SIGTERM.", unit="seconds", at_least=0)
    api_keys_file: str = _setting("", "File of API keys' hashes; read again when it changes. See `fluid keys --help`.")
    api_keys: str = _setting("", "The same lines, separated by semicolons, for those who keep no files.")
    rate_limit: int = _setting(
        0, "Requests that draw or upload, of one key; more get 429; 0: any number.", unit="per minute", at_least=0
    )
    max_jobs: int = _setting(
        0, "Jobs of one key that may wait or run; more get 429; 0: any number.", unit="jobs", at_least=0
    )
    metrics_access: str = _setting("open", "Who may read /metrics: anybody, or who has a key.", choices=("open", "key"))
    api_key: str = _setting("", "The key that commands such as `fluid batch` send to a service.")
    cors_origins: str = _setting("", "Pages of other origins that may call, by commas, such as https://app.example.")
    body_timeout_s: float = _setting(
        30.0,
        "A body that has not arrived by then is cut off; large ones may go on at 128 KiB/s.",
        unit="seconds",
        at_least=0.5,
    )
    log_prompts: str = _setting("no", "Whether the gateway's log has prompts.", choices=("no", "yes"))
    log_level: str = _setting("info", "How much is logged.", choices=("debug", "info", "warning", "error"))
    fake_step_ms: float = _setting(2.0, "Time of one step of the fake engine.", unit="milliseconds", at_least=0)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> "Settings":
        """Read FLUID_* once. Command-line overrides win over the environment."""
        env = os.environ if environ is None else environ
        table = {PREFIX + f.name.upper(): f for f in fields(cls)}
        given = {name: text for name, text in env.items() if name.startswith(PREFIX)}
        for name in given:
            if name not in table:
                raise SettingError(_unknown(name, tuple(table)))
        values = {table[name].name: _parse(name, table[name], text) for name, text in given.items()}
        for key, value in overrides.items():
            if value is not None:
                values[key] = _parse(PREFIX + key.upper(), table[PREFIX + key.upper()], str(value))
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """The variables that give a child process exactly these settings."""
        return {PREFIX + f.name.upper(): str(getattr(self, f.name)) for f in fields(self)}

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir or _default_data_dir()).expanduser()

    @property
    def wants_keys(self) -> bool:
        return bool(self.api_keys or self.api_keys_file)

    @property
    def base_url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}"


def describe() -> Iterator[tuple[str, str, str]]:
    """(variable, default, help with unit and choices) of every setting, for --help and the README."""
    for f in fields(Settings):
        choices = f" One of: {', '.join(f.metadata['choices'])}." if f.metadata["choices"] else ""
        unit = f" [{f.metadata['unit']}]" if f.metadata["unit"] else ""
        yield PREFIX + f.name.upper(), str(f.default), f.metadata["help"] + choices + unit


def _unknown(name: str, valid: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Unknown setting {name}.{hint} Valid settings: {', '.join(valid)}."


def _parse(name: str, spec: "Field[Any]", text: str) -> Any:
    meta = spec.metadata
    if meta["choices"] and text not in meta["choices"]:
        raise SettingError(f"{name}={text!r} is not one of: {', '.join(meta['choices'])}.")
    if text and meta["begins"] and not text.startswith(meta["begins"]):
        raise SettingError(f"{name}={text!r} must begin with {' or '.join(meta['begins'])}.")
    kind: Any = type(spec.default)
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise SettingError(f"{name}={text!r} must be {wanted}, for example {spec.default}.") from error
    low, high = meta["at_least"], meta["at_most"]
    # Written so that NaN fails too.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise SettingError(f"{name}={text!r} must be {limits}.")
    return value
