"""Train the image tokenizer of a preset: minutes on a CPU. Run the same command again to resume.

    python -m model.training.train_tokenizer                        emoji-64, five minutes, into runs/emoji-64/tokenizer
    python -m model.training.train_tokenizer --preset scenes-128 --data data/scenes --out runs/scenes-128/tokenizer
    python -m model.training.train_tokenizer --minutes 0 --steps 500        by steps instead of minutes

Training starts from PCA (networks/tokenizer.py). Latents get noise of standard deviation 0.1, so that the decoder
tolerates the small errors of generated tokens. With --noise-max every second image gets more, up to that standard
deviation, and the decoder learns to denoise (arXiv 2507.15856); --seam-weight counts errors of the gradient across
token borders again. At the end it writes weights, a sheet of reconstructions and report.json: the PSNR on trained
images and on concepts (for scenes: combinations) never trained on, and the seam ratio of latents with noise. Of a
discrete tokenizer, whose codes have no noise, it tells the share of the codebook in use and the perplexity of that use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.dataset import Dataset
from model.data.fixed_sample import load_images
from model.data.interrupts import interruptible
from model.data.sources import DataError
from model.inference.precision import autocast
from model.networks.factory import new_tokenizer
from model.networks.tokenizer import PcaSkipTokenizer, to_pixels
from model.networks.vq_tokenizer import VqTokenizer
from model.presets import PRESETS
from model.training.command.flags import add_budget_arguments, amount, whole_number
from model.training.command.machine import within_memory
from model.training.reconstruction.load import load_tokenizer
from model.training.reconstruction.loss import code_loss, reconstruction_loss
from model.training.reconstruction.report import measure, save_sheet
from model.training.reconstruction.start import freeze_encoder, start_from_pca
from model.training.trainer import (
    Clock,
    Ema,
    Learner,
    learning_rate,
    own_state,
    step_generator,
    tell_if_used_up,
)

PEAK_LR = 1.5e-3
PCA_IMAGES = 4096  # more would cost memory and no longer move the components


def train(
    preset: str,
    dataset: Dataset,
    out: Path,
    minutes: float,
    steps: int,
    batch: int,
    seed: int,
    noise_max: float = 0.0,
    seam_weight: float = 0.0,
    cpu_clock: bool = False,
    decoder_of: Path | None = None,
    progress: bool = True,
) -> PcaSkipTokenizer | VqTokenizer:
    """Train, from `out`/state.pt if it exists; return the averaged tokenizer, its latents normalised.

    Args:
        decoder_of: file of a trained tokenizer: only its decoder is trained on, so that its tokens stay what they were.

    Raises:
        ConfigError: preset, images, state and the tokenizer of `decoder_of` do not fit together.
        CheckpointError: `decoder_of` is a folder without a tokenizer.
    """
    config = PRESETS[preset]
    images = torch.from_numpy(dataset.images)  # (all, H, W, 3) uint8
    known = torch.from_numpy(dataset.indices(("train", "heldout", "tokenizer")))
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(config)
    _check_images(images, preset)
    if decoder_of is None and not (out / "state.pt").exists():
        start_from_pca(tokenizer, to_pixels(images[known[:PCA_IMAGES]]))
    if decoder_of is not None:
        tokenizer.load_state_dict(load_tokenizer(config, str(decoder_of)).state_dict())
        freeze_encoder(tokenizer)
    fixed = {name: value.clone() for name, value in tokenizer.named_parameters() if not value.requires_grad}
    # Convolutions on a CPU are about twice as fast this way.
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = Ema(tokenizer, 0.998)
    trained = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01)
    learner = Learner(tokenizer, ema, optimizer, Clock(steps, minutes, cpu_clock))
    clock = learner.clock
    with own_state(out, f", or remove {out}/state.pt to start over"):
        state = learner.resume(out / "state.pt")
    sample = images[known[:: len(known) // 64 + 1]]  # a digest of all of them takes seconds, and as much memory again
    digest = hashlib.sha256(sample.numpy().tobytes()).hexdigest()
    if state is not None and state.get("images", digest) != digest:  # not in states of earlier versions
        raise ConfigError(
            f"{out}/state.pt was trained on other images: choose another --out, or those --data and --things"
        )
    tell_if_used_up(clock)
    if not all(torch.equal(value, fixed[name]) for name, value in tokenizer.named_parameters() if name in fixed):
        raise ConfigError(
            f"{out}/state.pt holds another encoder than {decoder_of}: choose another --out, or remove it to start over"
        )

    bar = tqdm(initial=clock.step, desc="tokenizer", unit="step", disable=not progress)
    while clock.progress < 1:
        rng = step_generator(seed, clock.step)
        chosen = known[torch.randint(len(known), (batch,), generator=rng)]
        pixels = to_pixels(images[chosen])
        with autocast(torch.device("cpu")):
            if isinstance(tokenizer, VqTokenizer):
                torch.manual_seed(rng.initial_seed())  # codes out of use take the place of latents drawn at random
                loss = code_loss(tokenizer, pixels, seam_weight)
            else:
                noise = torch.randn(batch, config.tokens, config.channels, generator=rng)
                loss = reconstruction_loss(tokenizer, pixels, noise, noise_max, seam_weight)
        learner.update(loss, learning_rate(PEAK_LR, clock, warmup=50, anneal_from=0.2), clip=1.0)
        bar.update()
        if clock.step % 200 == 0 or clock.progress >= 1:
            bar.set_postfix(loss=f"{loss.item():.4f}", left=f"{clock.seconds_left:.0f}s")
            learner.save(out / "state.pt", images=digest)
    bar.close()
    ema.copy_to(tokenizer)
    tokenizer.eval()
    if decoder_of is not None or isinstance(tokenizer, VqTokenizer):
        return tokenizer
    tokenizer.fit_normalisation(to_pixels(images[torch.from_numpy(dataset.indices("train")[:PCA_IMAGES])]))
    return tokenizer


def _check_images(images: Tensor, preset: str) -> None:
    config, (_, size, _, channels) = PRESETS[preset], images.shape
    if (size, channels) != (config.image_size, config.image_channels):
        raise ConfigError(
            f"the images have {size} pixels and {channels} channels, preset {preset} has {config.image_size} and "
            f"{config.image_channels}: choose another --preset, or other --data"
        )


@interruptible("the same command resumes from the last saved state")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.train_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", default="emoji-64", choices=sorted(PRESETS), help="sizes, a name in model/presets.py"
    )
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"),
                        help="folder that `make data` packed (%(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-64/tokenizer"),
                        help="folder for state, weights, sheet and report (%(default)s)")  # fmt: skip
    add_budget_arguments(parser, minutes=5.0, steps=20_000, batch=16)
    parser.add_argument("--things", type=whole_number(1), default=48,
                        help="scenes: first things of model/data/scenes/things.py (%(default)s)")  # fmt: skip
    parser.add_argument("--snap", type=whole_number(1), default=16,
                        help="scenes: corners of things are multiples of this, pixels (%(default)s)")  # fmt: skip
    parser.add_argument("--noise-max", type=amount, default=0.0,
                        help="largest noise of the latents, in standard deviations; 0: 0.1 (%(default)s)")  # fmt: skip
    parser.add_argument("--seam-weight", type=amount, default=0.0,
                        help="weight of gradient errors across token borders (%(default)s)")  # fmt: skip
    parser.add_argument("--cpu-clock", action="store_true", help="count minutes of processor time")
    parser.add_argument("--decoder-of", type=Path, metavar="FILE",
                        help="train only the decoder of this tokenizer, or of this checkpoint's, whose tokens stay; "
                        "`python -m model.training.reconstruction` puts it there")  # fmt: skip
    args = parser.parse_args(argv)

    try:
        dataset = load_images(args.data, args.things, args.snap)
        with within_memory("lower --batch"):
            tokenizer = train(
                args.preset, dataset, args.out, args.minutes, args.steps, args.batch, args.seed, args.noise_max,
                args.seam_weight, args.cpu_clock, args.decoder_of,
            )  # fmt: skip
    except (DataError, ConfigError, CheckpointError) as error:
        sys.exit(str(error))
    report = measure(tokenizer, dataset)
    save_sheet(tokenizer, dataset, args.out / "sheet.png")
    (args.out / "report.json").write_text(json.dumps(report) + "\n")
    partial = args.out / "tokenizer.partial"  # last, and whole: `make train` takes the weights as a sign of all of it
    save_file({k: v.contiguous() for k, v in tokenizer.state_dict().items()}, partial)
    partial.replace(args.out / "tokenizer.safetensors")
    print(f"weights and sheet in {args.out}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
