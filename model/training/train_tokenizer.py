"""Train the image tokenizer: `python -m model.training.train_tokenizer --preset emoji-64 --data data/emoji-64`.

Starts from PCA (networks/tokenizer.py), minutes on a CPU. Latents get noise of 0.1 in training, so that the decoder
forgives the small errors of generated tokens. Ends with the reconstruction PSNR on concepts never trained on.
Resumable: run the same command again after a kill.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from model.data.contact_sheet import contact_sheet
from model.data.dataset import Dataset
from model.data.scenes.pictures import scene_pictures, sprites_file
from model.data.scenes.sprites import Sprites
from model.inference.precision import autocast
from model.networks.tokenizer import PcaSkipTokenizer, new_tokenizer, psnr, reconstruct, to_pixels, to_uint8
from model.presets import PRESETS
from model.training.trainer import Clock, Ema, Learner, generator, learning_rate

LATENT_NOISE = 0.1
PEAK_LR = 1.5e-3
MOST_FOR_PCA = 4096  # pictures: the components do not move any more, memory would


def reconstruction_loss(tokenizer: PcaSkipTokenizer, pixels: Tensor, noise: Tensor) -> Tensor:
    """L1 + 2·L2 + 0.3·L1 of image gradients + 1e-4·|z|²; (B, 3, H, W) pixels, (B, N, C) unit noise."""
    z = tokenizer.encode(pixels)
    out = tokenizer.decode(z + LATENT_NOISE * noise).float()
    error = out - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.3 * edges + 1e-4 * z.float().square().mean()


def train(
    preset: str,
    dataset: Dataset,
    out: Path,
    minutes: float,
    steps: int,
    batch: int,
    seed: int,
    progress: bool = True,
) -> PcaSkipTokenizer:
    """Run (or go on with) the training; returns the averaged tokenizer with its normalisation set."""
    config = PRESETS[preset]
    images = torch.from_numpy(dataset.images)  # (all, H, W, 3) uint8
    known = torch.from_numpy(dataset.indices(("train", "heldout", "tokenizer")))
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(config)
    tokenizer.start_from_pca(to_pixels(images[known[:MOST_FOR_PCA]]))
    # Convolutions on a CPU are about twice as fast this way.
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = Ema(tokenizer, 0.998)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01)
    learner = Learner(tokenizer, ema, optimizer, Clock(steps, minutes))
    clock = learner.clock
    learner.resume(out / "state.pt")

    bar = tqdm(initial=clock.step, desc="tokenizer", unit="step", disable=not progress)
    while clock.progress < 1:
        rng = generator(seed, clock.step)
        chosen = known[torch.randint(len(known), (batch,), generator=rng)]
        noise = torch.randn(batch, config.tokens, config.channels, generator=rng)
        with autocast(torch.device("cpu")):
            loss = reconstruction_loss(tokenizer, to_pixels(images[chosen]), noise)
        learner.update(loss, learning_rate(PEAK_LR, clock, warmup=50, anneal_from=0.2), clip=1.0)
        bar.update()
        if clock.step % 200 == 0 or clock.progress >= 1:
            bar.set_postfix(loss=f"{loss.item():.4f}", left=f"{clock.seconds_left:.0f}s")
            learner.save(out / "state.pt")
    bar.close()
    ema.copy_to(tokenizer)
    tokenizer.eval()
    tokenizer.fit_normalisation(to_pixels(images[torch.from_numpy(dataset.indices("train")[:MOST_FOR_PCA])]))
    return tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="emoji-64", choices=sorted(PRESETS), help="sizes, from model/config.py")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"), help="packed data set of `make data`")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-64/tokenizer"), help="state, weights, sheet")
    parser.add_argument("--minutes", type=float, default=5.0, help="time budget; 0 = by --steps alone")
    parser.add_argument("--steps", type=int, default=20_000, help="most steps")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--things", type=int, default=48, help="of scenes: how many of the things, in table order")
    parser.add_argument("--snap", type=int, default=16, help="of scenes: corners are multiples of so many pixels")
    args = parser.parse_args(argv)

    if sprites_file(args.data).exists():
        sprites = Sprites.load(args.data)
        dataset = scene_pictures(sprites, args.things, args.snap, train=8000, unseen=600)
    else:
        dataset = Dataset.load(args.data)
    tokenizer = train(args.preset, dataset, args.out, args.minutes, args.steps, args.batch, args.seed)
    report = {}
    for split in ("train", "unseen"):
        if len(chosen := dataset.indices(split)):
            originals = to_pixels(torch.from_numpy(dataset.images[chosen]))
            report[f"psnr_{split}_db"] = round(psnr(reconstruct(tokenizer, originals), originals).mean().item(), 2)
    shown = chosen[np.linspace(0, len(chosen) - 1, 16).astype(int)] if len(chosen) else dataset.indices("train")[:16]
    originals = torch.from_numpy(dataset.images[shown])
    copies = to_uint8(reconstruct(tokenizer, to_pixels(originals)))
    pairs = [picture for pair in zip(originals, copies, strict=True) for picture in pair]
    contact_sheet([p.numpy() for p in pairs], columns=8, scale=2).save(args.out / "sheet.png")
    save_file({k: v.contiguous() for k, v in tokenizer.state_dict().items()}, args.out / "tokenizer.safetensors")
    (args.out / "report.json").write_text(json.dumps(report) + "\n")
    print(f"weights and sheet in {args.out}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
