"""The backbone: inputs that must influence z, and inputs that must not."""

from __future__ import annotations

import torch

from model.networks.autoregressive_model import Fluid
from model.networks.layers.attention import attention
from model.networks.text_encoder import HashEncoder
from tests.model.conftest import context


def test_plain_and_fused_attention_agree() -> None:
    """Training on a CPU uses our own arithmetic below 512 queries; torch's fused attention is its oracle."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (20, 11, 11))
    mask = torch.rand(2, 11) > 0.4
    mask[:, 0] = True
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
    assert torch.allclose(attention(q, k, v, mask), fused, atol=1e-5)


def test_values_at_unknown_positions_do_not_change_z(tiny: Fluid, encoder: HashEncoder) -> None:
    torch.manual_seed(0)
    tokens, known = torch.randn(2, 16, 4), torch.rand(2, 16) > 0.5
    other = torch.where(known[..., None], tokens, torch.randn(2, 16, 4))
    text = context(tiny, encoder, "a cat", "a dog")
    assert torch.equal(tiny.backbone(tokens, known, text), tiny.backbone(other, known, text))


def test_known_tokens_text_and_position_change_z(tiny: Fluid, encoder: HashEncoder) -> None:
    torch.manual_seed(0)
    tokens, known = torch.randn(1, 16, 4), torch.zeros(1, 16, dtype=torch.bool)
    cat, dog = context(tiny, encoder, "a cat"), context(tiny, encoder, "a dog")
    empty = tiny.backbone(tokens, known, cat)
    assert not torch.allclose(empty, tiny.backbone(tokens, known, dog), atol=1e-4)
    assert not torch.allclose(empty[:, 0], empty[:, 1], atol=1e-4)
    known[0, 5] = True
    assert not torch.allclose(empty[:, 0], tiny.backbone(tokens, known, cat)[:, 0], atol=1e-4)


def test_text_padding_is_masked(tiny: Fluid, encoder: HashEncoder) -> None:
    """Garbage in the padding of the encoder's states must not reach z."""
    states, mask = encoder.encode(["a cat"])
    garbage = torch.where(mask[..., None], states, torch.full_like(states, 7.0))
    tokens, known = torch.randn(1, 16, 4), torch.ones(1, 16, dtype=torch.bool)
    z = tiny.backbone(tokens, known, tiny.backbone.encode_text(states, mask))
    assert torch.allclose(z, tiny.backbone(tokens, known, tiny.backbone.encode_text(garbage, mask)), atol=1e-6)


def test_rows_with_different_numbers_of_known_tokens_share_a_batch(tiny: Fluid, encoder: HashEncoder) -> None:
    """The reference code assumes one count for the whole batch; ours must not."""
    torch.manual_seed(0)
    tokens = torch.randn(3, 16, 4)
    known = torch.arange(16)[None] < torch.tensor([0, 3, 15])[:, None]
    text = context(tiny, encoder, "a cat", "a dog", "two birds")
    together = tiny.backbone(tokens, known, text)
    for row in range(3):
        one = slice(row, row + 1)
        alone = tiny.backbone(tokens[one], known[one], text[one])
        assert torch.allclose(together[one], alone, atol=1e-5)
