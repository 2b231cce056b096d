"""`python -m model.evaluation.cards`: publish a training run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import model.evaluation.cards
from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.interrupts import interruptible
from model.evaluation.cards.facts import read_json
from model.evaluation.cards.publish import publish


@interruptible("the same command starts over")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluation.cards",
        description=model.evaluation.cards.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--checkpoint", type=Path, help="weights to publish (default: RUN/checkpoint)")
    parser.add_argument("--evaluation", type=Path, required=True, action="append", help="folder of an evaluation of "
                        "these weights; may be repeated, for suites scenes and breadth")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to publish to")
    parser.add_argument("--sampling", type=Path, required=True, help="JSON with presets and defaults for the service")
    parser.add_argument("--description", required=True, help="one sentence, for the card and GET /v1/models")
    parser.add_argument("--examples", type=Path, help="text file with a prompt a line, for GET /v1/models and the "
                        "playground")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        sampling = read_json(args.sampling)
        examples = args.examples.read_text(encoding="utf-8").splitlines() if args.examples else ()
        publish(args.run, args.evaluation, args.out, sampling, args.description, args.checkpoint, examples)
    except (ConfigError, CheckpointError, OSError) as error:
        sys.exit(str(error))
    print(f"published {args.out}; look at {args.out / 'README.md'}")


if __name__ == "__main__":
    main()
