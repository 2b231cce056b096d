"""Train the image tokenizer of a preset: minutes on a CPU. Run the same command again to resume.

    python -m model.training.train_tokenizer                        emoji-64, five minutes, into runs/emoji-64/tokenizer
    python -m model.training.train_tokenizer --preset scenes-128 --data data/scenes --out runs/scenes-128/tokenizer
    python -m model.training.train_tokenizer --minutes 0 --steps 500        by steps instead of minutes

Training starts from PCA (networks/tokenizer.py). Latents get noise of standard deviation 0.1, so that the decoder
tolerates the small errors of generated tokens. With --noise-max every second image gets more, up to that standard
deviation, and the decoder learns to denoise (arXiv 2507.15856); --seam-weight counts errors of the gradient across
token borders again. At the end it writes weights, a sheet of reconstructions and report.json: the PSNR on trained
images and on concepts (for scenes: combinations) never trained on, and the seam ratio of latents with noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from model.data.atlas.atlas_dataset import atlas_dataset
from model.data.atlas.store import AtlasSprites, is_atlas_folder
from model.data.contact_sheet import contact_sheet
from model.data.dataset import Dataset
from model.data.scenes.dataset import is_scene_folder, scene_dataset
from model.data.scenes.sprites import Sprites
from model.data.sources import DataError
from model.inference.precision import autocast
from model.networks.tokenizer import PcaSkipTokenizer, new_tokenizer, psnr, reconstruct, seam_ratio, to_pixels, to_uint8
from model.presets import PRESETS
from model.training.trainer import Clock, Ema, Learner, add_budget_arguments, learning_rate, step_generator

LATENT_NOISE = 0.1  # standard deviation; latents have 1
PEAK_LR = 1.5e-3
PCA_IMAGES = 4096  # more would cost memory and no longer move the components
MEASURED = 256  # images of each split in the report, at most
SEAM_NOISE = (0.0, 0.2)  # standard deviations of the latents' noise at which seams are measured; latents have 1


def reconstruction_loss(
    tokenizer: PcaSkipTokenizer, pixels: Tensor, noise: Tensor, noise_max: float = 0.0, seam_weight: float = 0.0
) -> Tensor:
    """L1 + 2·L2 + 0.3·L1 of image gradients + 1e-4·|z|² + seam_weight·L1 of the gradients across token borders.

    Args:
        pixels: (B, 3 or 4, H, W) in [-1, 1].
        noise: (B, N, C), standard normal.
        noise_max: largest standard deviation of the noise of every second image, relative to that of the latents, which
            therefore cannot grow to outshout it; 0: LATENT_NOISE for all, absolute.
    """
    z = tokenizer.encode(pixels)
    sigma: float | Tensor = LATENT_NOISE
    if noise_max:
        spread = torch.arange(1, len(pixels) + 1, 2) / len(pixels)  # even levels: their mean is the same in every batch
        levels = torch.full((len(pixels),), LATENT_NOISE)
        levels[1::2] = LATENT_NOISE + (noise_max - LATENT_NOISE) * spread[: len(levels[1::2])]
        sigma = levels[:, None, None].to(z) * z.detach().std()
    out = tokenizer.decode(z + sigma * noise).float()
    error = out - pixels
    down, right = error.diff(dim=2).abs(), error.diff(dim=3).abs()
    loss = error.abs().mean() + 2 * error.square().mean() + 0.3 * (down.mean() + right.mean())
    loss = loss + 1e-4 * z.float().square().mean()
    if seam_weight:
        stride = tokenizer.config.stride
        across = down[:, :, stride - 1 :: stride].mean() + right[:, :, :, stride - 1 :: stride].mean()
        loss = loss + seam_weight * across
    return loss


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
) -> PcaSkipTokenizer:
    """Train, from `out`/state.pt if it exists; return the averaged tokenizer, its latents normalised.

    Args:
        decoder_of: file of a trained tokenizer: only its decoder is trained on, so that its tokens stay what they were.
    """
    config = PRESETS[preset]
    images = torch.from_numpy(dataset.images)  # (all, H, W, 3) uint8
    known = torch.from_numpy(dataset.indices(("train", "heldout", "tokenizer")))
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(config)
    if decoder_of is None and not (out / "state.pt").exists():
        tokenizer.start_from_pca(to_pixels(images[known[:PCA_IMAGES]]))
    if decoder_of is not None:
        tokenizer.load_state_dict(load_file(decoder_of))
        tokenizer.analysis.requires_grad_(False)
        tokenizer.f.requires_grad_(False)
    # Convolutions on a CPU are about twice as fast this way.
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = Ema(tokenizer, 0.998)
    trained = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01)
    learner = Learner(tokenizer, ema, optimizer, Clock(steps, minutes, cpu_clock))
    clock = learner.clock
    learner.resume(out / "state.pt")

    bar = tqdm(initial=clock.step, desc="tokenizer", unit="step", disable=not progress)
    while clock.progress < 1:
        rng = step_generator(seed, clock.step)
        chosen = known[torch.randint(len(known), (batch,), generator=rng)]
        noise = torch.randn(batch, config.tokens, config.channels, generator=rng)
        with autocast(torch.device("cpu")):
            loss = reconstruction_loss(tokenizer, to_pixels(images[chosen]), noise, noise_max, seam_weight)
        learner.update(loss, learning_rate(PEAK_LR, clock, warmup=50, anneal_from=0.2), clip=1.0)
        bar.update()
        if clock.step % 200 == 0 or clock.progress >= 1:
            bar.set_postfix(loss=f"{loss.item():.4f}", left=f"{clock.seconds_left:.0f}s")
            learner.save(out / "state.pt")
    bar.close()
    ema.copy_to(tokenizer)
    tokenizer.eval()
    if decoder_of is not None:
        return tokenizer
    tokenizer.fit_normalisation(to_pixels(images[torch.from_numpy(dataset.indices("train")[:PCA_IMAGES])]))
    return tokenizer


def load_images(data: Path, things: int, snap: int) -> Dataset:
    """The packed data set in `data`, or a fixed sample of scenes and of the breadth if the folder holds sprites.

    Raises:
        DataError: the folder holds neither.
    """
    if is_atlas_folder(data):
        return atlas_dataset(AtlasSprites.load(data), things, snap, train=16000, unseen=800)
    if is_scene_folder(data):
        return scene_dataset(Sprites.load(data), things, snap, train=8000, unseen=600)
    return Dataset.load(data)


def measure(tokenizer: PcaSkipTokenizer, dataset: Dataset) -> dict[str, float]:
    """Mean reconstruction PSNR, in dB, and seam ratios with noise on the latents, of the splits that the data has."""
    report = {}
    for split in ("train", "unseen"):
        if len(rows := dataset.indices(split)[:MEASURED]):
            originals = to_pixels(torch.from_numpy(dataset.images[rows]))
            report[f"psnr_{split}_db"] = round(psnr(reconstruct(tokenizer, originals), originals).mean().item(), 2)
            rng = step_generator(0, 0)
            for level in SEAM_NOISE:
                noise = level * torch.randn(len(rows), *_latent_shape(tokenizer, originals), generator=rng)
                copies = reconstruct(tokenizer, originals, noise=noise)
                ratio = seam_ratio(copies, originals, tokenizer.config.stride)
                report[f"seam_{split}_noise_{level:g}"] = round(ratio, 3)
    return report


def _latent_shape(tokenizer: PcaSkipTokenizer, pixels: Tensor) -> tuple[int, int]:
    """(N, C) of one image."""
    return (pixels.shape[2] // tokenizer.config.stride) ** 2, tokenizer.config.channels


def save_sheet(tokenizer: PcaSkipTokenizer, dataset: Dataset, file: Path) -> None:
    """Write a sheet of up to 16 images, unseen ones if there are any, each before its reconstruction."""
    rows = dataset.indices("unseen")
    rows = rows[np.linspace(0, len(rows) - 1, 16).astype(int)] if len(rows) else dataset.indices("train")[:16]
    originals = torch.from_numpy(dataset.images[rows])
    copies = to_uint8(reconstruct(tokenizer, to_pixels(originals)))
    pairs = [image[..., :3].numpy() for pair in zip(originals, copies, strict=True) for image in pair]
    contact_sheet(pairs, columns=8, scale=2).save(file)


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
    parser.add_argument("--things", type=int, default=48,
                        help="scenes: first things of model/data/scenes/things.py (%(default)s)")  # fmt: skip
    parser.add_argument("--snap", type=int, default=16,
                        help="scenes: corners of things are multiples of this, pixels (%(default)s)")  # fmt: skip
    parser.add_argument("--noise-max", type=float, default=0.0,
                        help="largest noise of the latents, in standard deviations; 0: 0.1 (%(default)s)")  # fmt: skip
    parser.add_argument("--seam-weight", type=float, default=0.0,
                        help="weight of gradient errors across token borders (%(default)s)")  # fmt: skip
    parser.add_argument("--cpu-clock", action="store_true", help="count minutes of processor time")
    parser.add_argument("--decoder-of", type=Path, metavar="FILE",
                        help="train only the decoder of this tokenizer: models of its tokens keep fitting")  # fmt: skip
    args = parser.parse_args(argv)

    try:
        dataset = load_images(args.data, args.things, args.snap)
    except DataError as error:
        sys.exit(str(error))
    tokenizer = train(
        args.preset, dataset, args.out, args.minutes, args.steps, args.batch, args.seed, args.noise_max,
        args.seam_weight, args.cpu_clock, args.decoder_of,
    )  # fmt: skip
    save_file({k: v.contiguous() for k, v in tokenizer.state_dict().items()}, args.out / "tokenizer.safetensors")
    report = measure(tokenizer, dataset)
    save_sheet(tokenizer, dataset, args.out / "sheet.png")
    (args.out / "report.json").write_text(json.dumps(report) + "\n")
    print(f"weights and sheet in {args.out}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
