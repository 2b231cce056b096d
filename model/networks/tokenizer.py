"""The continuous image tokenizer: a small convolutional autoencoder around an exact linear one.

    z = P(x) + f(x)          P: the first C principal components of each stride×stride patch (a strided convolution)
    x' = Pᵀ(z) + g(z)        f, g: small convolutional nets whose last layer starts at zero

So training starts at the quality of PCA (23 dB with 16 of 192 dimensions on emoji) instead of uniform grey, which saves
most of the time that a plain autoencoder would need on a CPU. Components are divided by sd^½ rather than sd, so that
coarse structure keeps more variance than detail; one mean per channel and one common scale then bring z near unit
variance.

With `overlap`, Pᵀ writes each token into a square of twice the stride, starting as zero outside its own patch, and g
has one more stage at half resolution: neighbours that disagree a little then blend instead of meeting at an edge. With
four image channels the last is alpha; the colours are those of the image on its background, white if transparent.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConfigError, TokenizerConfig

FIRM = 1 - 16 / 127.5  #: distance of alpha from one half at which `with_firm_alpha` calls it an end; 1 is 0 or 255


class ImageTokenizer(Protocol):
    """Maps pixels to tokens of unit variance, and back."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3 or 4, H, W) in [-1, 1] -> (B, N, C)"""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, 3 or 4, H, W), nominally in [-1, 1], not clipped."""
        ...


class DiscreteTokenizer(Protocol):
    """Maps pixels to indices of code vectors, and back."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3 or 4, H, W) in [-1, 1] -> (B, grid, grid) int64, 0 to K - 1"""
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """(B, grid, grid) int64 -> (B, 3 or 4, H, W), nominally in [-1, 1], not clipped."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., C), the code vectors."""
        ...


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), both 3×3."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class PcaSkipTokenizer(nn.Module):
    """Pixels in [-1, 1] <-> normalised latents; see the module's formula.

    P and Pᵀ are float32 under autocast too, a hundredth of the work: oneDNN 3.12's bfloat16 convolution of 4 channels
    with 16 × 16 kernels returns noise on a CPU with AMX, and so does the gradient of the transposed one (docs/log.md).
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        stride, channels, colours = config.stride, config.channels, config.image_channels
        if stride % 4:
            raise ConfigError(f"a tokenizer's stride of {stride} is not a multiple of 4, which its layers need")
        fine, middle, coarse = config.widths
        self.analysis = nn.Conv2d(colours, channels, stride, stride)  # P
        border = stride // 2 if config.overlap else 0  # pixels that a token reaches into its neighbours
        self.synthesis = nn.ConvTranspose2d(channels, colours, stride + 2 * border, stride, border)  # Pᵀ
        # Two stride-2 stages fixed, the rest of the stride in one (un)shuffle: 8 = 2·2·2, 4 = 2·2·1
        last = stride // 4
        self.f = nn.Sequential(
            nn.Conv2d(colours, fine, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(fine, middle, 3, 2, 1), nn.SiLU(),
            nn.PixelUnshuffle(last), nn.Conv2d(middle * last * last, coarse, 1),
            Residual(coarse), nn.Conv2d(coarse, channels, 1),
        )  # fmt: skip
        self.g = nn.Sequential(
            nn.Conv2d(channels, coarse, 3, 1, 1), Residual(coarse), Residual(coarse),
            nn.Conv2d(coarse, middle * last * last, 1), nn.PixelShuffle(last), Residual(middle),
            nn.Conv2d(middle, fine * 4, 3, 1, 1), nn.PixelShuffle(2), Residual(fine) if config.overlap else nn.SiLU(),
            nn.Conv2d(fine, 4 * colours, 3, 1, 1), nn.PixelShuffle(2),
        )  # fmt: skip
        for net in (self.f, self.g):
            final = [layer for layer in net if isinstance(layer, nn.Conv2d)][-1]
            nn.init.zeros_(final.weight)
            nn.init.zeros_(final.bias)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))
        self.mean: Tensor
        self.scale: Tensor

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3 or 4, H, W) in [-1, 1] -> (B, N, C): each channel centred, unit variance over all channels."""
        if pixels.shape[1] < self.config.image_channels:  # RGB: opaque everywhere
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        fine = self.f(pixels)  # (B, C, H/s, W/s)
        with torch.autocast(pixels.device.type, enabled=False):
            z = self.analysis(pixels.float()) + fine
        z = (z - self.mean[:, None, None]) / self.scale
        return z.flatten(2).transpose(1, 2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, 3 or 4, H, W), nominally in [-1, 1] (not clipped)."""
        grid = round(tokens.shape[1] ** 0.5)
        z = tokens.transpose(1, 2).unflatten(2, (grid, grid))  # (B, C, g, g)
        z = z * self.scale + self.mean[:, None, None]
        fine = self.g(z)  # (B, 3 or 4, H, W)
        with torch.autocast(z.device.type, enabled=False):
            image: Tensor = self.synthesis(z.float()) + fine
        return image

    @torch.no_grad()
    def start_from_pca(self, pixels: Tensor) -> None:
        """Set P and Pᵀ to the principal components of the patches of (B, 3 or 4, H, W) pixels."""
        stride, channels, colours = self.config.stride, self.config.channels, self.config.image_channels
        values_each = colours * stride**2  # of a patch
        total, products, count = torch.zeros(values_each).double(), torch.zeros(values_each, values_each).double(), 0
        for part in pixels.split(128):  # all patches at once would take 10 GB at 128 px
            patches = F.unfold(part, stride, stride=stride).transpose(1, 2).flatten(0, 1).double()  # (B·N, 3s²)
            total, products, count = total + patches.sum(0), products + patches.T @ patches, count + len(patches)
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - mean.outer(mean))  # ascending
        basis = vectors.flip(1)[:, :channels]  # (3s², C)
        # Eigenvectors are determined up to their sign; fix it, so that two runs agree.
        basis = basis * torch.sign(basis.sum(0, keepdim=True) + 1e-12)
        spread = values.flip(0)[:channels].clamp_min(1e-12) ** 0.25  # sd^½
        shape = (channels, colours, stride, stride)
        self.analysis.weight.copy_((basis / spread).T.reshape(shape))
        self.analysis.bias.copy_(-(mean @ (basis / spread)))  # type: ignore[union-attr]
        border = self.synthesis.padding[0]
        assert isinstance(border, int)
        own = slice(border, border + stride)  # the token's own patch, without its reach into neighbours
        self.synthesis.weight.zero_()
        self.synthesis.weight[:, :, own, own] = (basis * spread).T.reshape(shape)
        # A transposed convolution has one bias per colour, PCA one mean per pixel of the patch; g learns the rest.
        self.synthesis.bias.copy_(mean.view(colours, -1).mean(1))  # type: ignore[union-attr]

    @torch.no_grad()
    def fit_normalisation(self, pixels: Tensor, batch: int = 128) -> None:
        """Set mean and scale so that the latents of pixels (B, 3, H, W) are centred with unit variance."""
        self.mean.zero_()
        self.scale.fill_(1.0)
        z = torch.cat([self.encode(part) for part in pixels.split(batch)])  # (B, N, C)
        self.mean.copy_(z.mean((0, 1)))
        self.scale.copy_((z - z.mean((0, 1))).std())


def encode_tokens(tokenizer: ImageTokenizer | DiscreteTokenizer, pixels: Tensor) -> Tensor:
    """(B, 3 or 4, H, W) in [-1, 1] -> (B, N, C), or (B, N) int64 if discrete."""
    tokens = tokenizer.encode(pixels)
    return tokens if tokens.is_floating_point() else tokens.flatten(1)


def decode_tokens(tokenizer: ImageTokenizer | DiscreteTokenizer, tokens: Tensor) -> Tensor:
    """(B, N, C), or (B, N) int64 if discrete -> (B, 3 or 4, H, W), nominally in [-1, 1] (not clipped)."""
    if not tokens.is_floating_point():
        grid = round(tokens.shape[1] ** 0.5)
        tokens = tokens.unflatten(1, (grid, grid))
    return tokenizer.decode(tokens)


@torch.no_grad()
def reconstruct(
    tokenizer: ImageTokenizer | DiscreteTokenizer, pixels: Tensor, batch: int = 64, noise: Tensor | None = None
) -> Tensor:  # fmt: skip
    """(B, 3 or 4, H, W) pixels through the tokenizer and back; noise (B, N, C) is added to the tokens."""
    out = []
    for start in range(0, len(pixels), batch):
        tokens = tokenizer.encode(pixels[start : start + batch])
        out.append(tokenizer.decode(tokens if noise is None else tokens + noise[start : start + batch]))
    return torch.cat(out)


def to_pixels(images: Tensor) -> Tensor:
    """(B, H, W, 3 or 4) uint8 -> (B, 3 or 4, H, W) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def on_white(pixels: Tensor) -> Tensor:
    """(B, 4, H, W) own colours and alpha, in [-1, 1] -> colours on white, as tokenizers of four channels have them."""
    share = (pixels[:, 3:] + 1) / 2
    return torch.cat([1 + (pixels[:, :3] - 1) * share, pixels[:, 3:]], 1)


def off_white(pixels: Tensor) -> Tensor:
    """The inverse of `on_white`, clipped; where alpha is below one level of 255, colours stay as they are on white."""
    share = ((pixels[:, 3:] + 1) / 2).clamp(0, 1)
    own = 1 + (pixels[:, :3] - 1) / share.clamp_min(1 / 255)
    return torch.cat([torch.where(share < 1 / 255, pixels[:, :3], own.clamp(-1, 1)), pixels[:, 3:]], 1)


def with_firm_alpha(pixels: Tensor) -> Tensor:
    """(B, 4, H, W) with alpha stretched, so that 16 of 255 and less is 0, and 239 and more is 255.

    Decoders come near the ends without reaching them: nearly opaque things let the page through, and empty ground is
    not quite empty.
    """
    return torch.cat([pixels[:, :3], (pixels[:, 3:] / FIRM).clamp(-1, 1)], 1)


def to_uint8(pixels: Tensor) -> Tensor:
    """(B, 3 or 4, H, W) nominally in [-1, 1] -> (B, H, W, 3 or 4) uint8, clipped and rounded to nearest."""
    return ((pixels.float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def seam_gradients(pixels: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of neighbouring pixels across token borders, and of all others.

    Args:
        pixels: (B, 3 or 4, H, W). stride: pixels on one side of a token.
    """
    rows, columns = pixels.diff(dim=2).abs().mean((0, 1, 3)), pixels.diff(dim=3).abs().mean((0, 1, 2))
    steps = torch.cat([rows, columns])
    place = torch.cat([torch.arange(len(rows)), torch.arange(len(columns))]).to(steps.device)
    border = place % stride == stride - 1
    return steps[border].mean(), steps[~border].mean()


def seam_ratio(pixels: Tensor, real: Tensor, stride: int) -> float:
    """Visibility of token borders: the ratio of `seam_gradients` over that of real images; 1 where none shows."""
    (across, inside), (real_across, real_inside) = (seam_gradients(each, stride) for each in (pixels, real))
    return float(across / inside * real_inside / real_across)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of images (B, 3 or 4, H, W) in [-1, 1], whose peak is 2."""
    mse = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / mse.clamp_min(1e-10))
