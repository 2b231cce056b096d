"""The `fluid` command: import one command's module, parse its flags, run it."""

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from server import __version__
from server.addresses import HIDDEN, url_passwords
from server.background import exit_now
from server.errors import EngineBroken, FluidError, OperatorError
from server.setting_values import service_links
from server.settings import Settings
from server.telemetry.log_format import JsonFormatter

log = logging.getLogger(__name__)
#: Command -> module, in the order of `fluid --help`. The module's `add_parser(commands)` adds its commands and sets a
#: `run(settings, args)` for each.
COMMANDS = {
    "demo": "demo", "generate": "generate", "serve": "serve", "gateway": "serve", "worker": "serve",
    "batch": "batch", "eval": "evaluation.command", "edit": "edit", "vary": "edit", "import": "import_weights",
    "doctor": "doctor", "dlq": "operations", "keys": "operations", "reload": "operations",
    "forget": "operations",
}  # fmt: skip

EXAMPLES = """examples:
  fluid demo "a red apple, 3d style" --out apple.png    try the whole service with one image
  fluid generate "a sleeping cat" --out cat.png         generate in this process, without a server
  fluid serve                                           start a service on http://127.0.0.1:8000/
  FLUID_REDIS_URL=redis://db:6379 fluid worker          add a worker to an existing service

Run `fluid COMMAND --help` for a command's flags and examples; `fluid serve --help` lists every setting."""

#: Flags that override the setting of the same name.
OVERRIDES = ("host", "port", "data_dir", "checkpoint", "device", "tensor_parallel")

#: Environment variables whose values are hidden in logs and messages.
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY$|PRIVATE_KEY|CREDENTIAL|_HEADERS$")
SHORTEST_SECRET = 8  # shorter ones would hide parts of ordinary words

# Exit statuses. On USAGE `fluid serve` stops: a restart would fail in the same way.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def run_and_exit() -> NoReturn:
    """The `fluid` script: run the command of this process and end it with the command's exit status.

    obstore finishes a call in a thread of its own, which needs the interpreter once more after our side has gone on. Up
    to Python 3.13 a thread that asks for an interpreter that is ending is made to exit, and Rust answers that by
    aborting the process: SIGABRT in place of the status. The library cannot be shut down, so after it was used
    (`sys.modules` tells) the process ends without the interpreter's own ending.
    """
    status = main()
    if "obstore" not in sys.modules:
        sys.exit(status)
    exit_now(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, FAILED, USAGE or INTERRUPTED."""
    words = sys.argv[1:] if argv is None else argv
    args = _parser(words).parse_args(words)
    secrets = Secrets(os.environ)
    try:
        settings = Settings.from_env(**{name: _one(getattr(args, name, None)) for name in OVERRIDES})
        _configure_logging(settings, args, secrets)
        args.run(settings, args)
        sys.stdout.flush()  # a key or a backup that does not reach its file is a failure
    except FluidError as error:
        with suppress(OSError):
            print(secrets.hide(f"fluid {args.command}: {error}"), file=sys.stderr)
        return FAILED if isinstance(error, (EngineBroken, OperatorError)) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `fluid ... | head`: what reads the output has ended
        return FAILED
    except OSError as error:
        where = error.filename or "the output"
        with suppress(OSError):
            print(secrets.hide(f"fluid {args.command}: {where}: {error.strerror or error}"), file=sys.stderr)
        return FAILED
    finally:
        _flush()
    return 0


def _one(value: Any) -> Any:
    """A flag that was repeated, as its setting writes several values."""
    return ",".join(value) if isinstance(value, list) else value


def _flush() -> None:
    """Write out what is buffered; if nothing reads it any more, let it go, or Python would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Build the parser for the command that `words` begin with, or for all commands.

    Importing all of them loads FastAPI, Redis and httpx: half a second and 30 MB that a worker does not need.
    """
    parser = argparse.ArgumentParser(
        prog="fluid",
        description="Text-to-image inference with Fluid-style models: one image, or a whole service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fluid-serve {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    named = COMMANDS.get(words[0]) if words else None
    for module in [named] if named else dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"server.cli.{module}").add_parser(commands)
    return parser


class Secrets:
    """The secrets in a process' environment, to be hidden in what it logs: a library's error may quote any of them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        found = {text for name, text in environ.items() if SECRET_NAME.search(name.upper())}
        for name in ("FLUID_REDIS_URL", "FLUID_TRACES_URL"):
            found |= url_passwords(environ.get(name, ""))
        self._texts = sorted((text for text in found if len(text) >= SHORTEST_SECRET), key=len, reverse=True)

    def hide(self, text: str) -> str:
        for secret in self._texts:
            text = text.replace(secret, HIDDEN)
        return text


class _SafeFormatter(logging.Formatter):
    def __init__(self, form: str, secrets: Secrets) -> None:
        super().__init__(form)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return self._secrets.hide(super().format(record))


def _configure_logging(settings: Settings, args: argparse.Namespace, secrets: Secrets) -> None:
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter(args.command, secrets.hide))
    else:
        handler.setFormatter(_SafeFormatter(f"%(asctime)s {args.command} %(levelname)s %(message)s", secrets))
    level = "WARNING" if getattr(args, "quiet", False) else settings.log_level.upper()
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("httpx", "httpcore"):  # they log URLs, which may hold a token, and headers
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if injected := service_links(os.environ):
        log.info("ignored, because Kubernetes injects them for a Service: %s", ", ".join(injected))
