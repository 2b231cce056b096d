"""Layers that all backbones share: attention and positions, blocks, the residual stream."""
