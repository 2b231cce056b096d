"""Soak test: run the service at a share of its capacity for hours, and judge the slope of everything that could grow.

Gateway, workers with the fake engine and Valkey are real processes; Valkey syncs at every write. Besides images at a
steady rate, visitors follow, abandon and cancel jobs, stream previews, run batches, receive webhooks and send requests
that are refused. Every few seconds a line with memory, descriptors, threads and keys goes into a file. At the end, or
at Ctrl-C, each figure is judged: it grows, it falls, or its slope is zero within noise. Time to live of records, files
and batches is a minute or two, so that they expire as fast as they come; tombstones stay for a day and image files for
an hour by contract, so keys and memory are judged without them.

The exit status is 1 if anything grows. The last line of output is one JSON object. Example:

    make soak
    python -m benchmarks.soak --minutes 120 --load 0.7
    python -m benchmarks.soak --report out/soak/samples.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.load.generator import Generator
from benchmarks.load.service import service
from benchmarks.machine import describe_machine, save_result
from benchmarks.soak import report, traffic
from benchmarks.soak.samples import Recorder, count_keys_forever, keys_by_kind, read_lines, sample_forever

ROWS = 8
TTL_S = {"result_ttl_s": 60, "batch_ttl_s": 120}
WEBHOOKS = {"webhook_secret": "whsec_" + "A" * 43 + "=", "webhook_private": "allow"}
LEAST_SAVED = 30.0  # minutes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0, help="how long (default 120); a run shorter than "
                        f"{LEAST_SAVED:g} is not saved in benchmarks/results")  # fmt: skip
    parser.add_argument("--load", type=float, default=0.7, help="share of the measured capacity (default 0.7)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step-ms", type=float, default=25.0, help="time of the engine's step (default 25)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples (default 10)")
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="folder of samples and plot (default "
                        "%(default)s)")  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="judge the samples of an earlier run, and run "
                        "nothing")  # fmt: skip
    args = parser.parse_args(argv)
    samples = args.report or args.out / "samples.jsonl"
    if args.report is None:
        samples.parent.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with samples.open("w") as file:
            try:
                asyncio.run(_run(args, Recorder(file)))
            except KeyboardInterrupt:
                print("interrupted: judging what has been recorded", file=sys.stderr)
    lines = read_lines(samples)
    result = report.judge(lines)
    report.print_table(result)
    print(f"plot: {report.plot(lines, samples.with_name('soak.svg'))}")
    if args.report is None and result["minutes"] >= LEAST_SAVED:
        print(f"saved to {save_result('soak', result)}")
    print(json.dumps(result))
    sys.exit(1 if result["grows"] or result["ended_early"] else 0)


async def _run(args: argparse.Namespace, recorder: Recorder) -> None:
    """Run the service under load and record samples until the time is over or one of its processes exits."""
    settings: dict[str, Any] = {"fake_step_ms": args.step_ms, "max_rows": ROWS, **TTL_S, **WEBHOOKS}
    async with service(args.workers, **settings) as running:
        generator, visitors = Generator(running.settings.port), traffic.Visitors(running.settings.base_url)
        await generator.open(16)
        measured = await traffic.capacity(generator, args.workers * traffic.ideal_per_s(ROWS, args.step_ms))
        rate = args.load * measured - visitors.images_per_s
        if rate <= 0:
            raise SystemExit(f"{measured:.1f} images/s are too few for a load of {args.load:g}: lower --step-ms.")
        recorder.write("start", {
            "machine": describe_machine(), "load": args.load, "workers": args.workers, "step_ms": args.step_ms,
            "capacity_per_s": round(measured, 1), "images_per_s": round(rate + visitors.images_per_s, 1),
            "ttl_s": TTL_S["result_ttl_s"],
        })  # fmt: skip
        tasks = [
            asyncio.create_task(sample_forever(running, recorder, args.every)),
            asyncio.create_task(count_keys_forever(running, recorder)),
            asyncio.create_task(traffic.send_forever(generator, rate, recorder)),
            asyncio.create_task(visitors.run_forever()),
            asyncio.create_task(_show_time(60 * args.minutes)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is not None:
                    recorder.write("ended_early", {"reason": f"{type(error).__name__}: {error}"})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            recorder.write("visitors", dict(sorted(visitors.did.items())))
            generator.close()
        recorder.write("keys", await keys_by_kind(running))


async def _show_time(seconds: float) -> None:
    """Show a bar of the time, and return when it is over."""
    began = time.monotonic()
    with tqdm(total=round(seconds), desc="soak", unit="s", disable=not sys.stderr.isatty()) as bar:
        while (passed := time.monotonic() - began) < seconds:
            bar.update(round(passed) - bar.n)
            await asyncio.sleep(min(1.0, seconds - passed))


if __name__ == "__main__":
    main()
