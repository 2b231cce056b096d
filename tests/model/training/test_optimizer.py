"""The optimisers of a recipe: which parameters are whose, and that a saved state goes on as if nothing had happened."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from model.config import ConfigError
from model.networks.autoregressive_model import Fluid
from model.presets import PRESETS
from model.training.auxiliary.layout_loss import LayoutHead
from model.training.optimizer import BatchedMuon, MuonWithAdamW, make_optimizer
from model.training.recipe import Recipe


class Net(nn.Module):
    """A matrix within a block, one before it, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.token_in = nn.Linear(3, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.token_in(x).tanh())


def _train(net: Net, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        net(x).square().mean().backward()
        optimizer.step()


def test_muon_has_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model, head = Fluid(PRESETS["tiny"]), LayoutHead(PRESETS["tiny"].width)
    optimizer = make_optimizer("muon", model, [head], 1e-3, 0.02)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, *others = optimizer.param_groups
    assert "ns_steps" in muon and muon["weight_decay"] == 0.02 and all("betas" in group for group in others)
    found = {names[id(p)] for p in muon["params"]}
    assert found == {n for n, p in model.named_parameters() if ".blocks." in n and p.ndim == 2}
    assert "backbone.blocks.0.mlp.0.weight" in found and "head.blocks.0.mlp.0.weight" in found
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters})
    assert len(parameters) == len([*model.parameters(), *head.parameters()])


def test_it_takes_the_steps_of_both() -> None:
    torch.manual_seed(0)
    one = Net()
    two = copy.deepcopy(one)
    _train(one, make_optimizer("muon", one, [], 1e-2, 0.1), 0, 5)
    muon = torch.optim.Muon([two.blocks[0].weight], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": [two.token_in.weight], "weight_decay": 0.1},
         {"params": [two.token_in.bias, two.blocks[0].bias], "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95),
    )  # fmt: skip
    for step in range(5):
        for part in (muon, adamw):
            part.zero_grad()
        two(torch.randn(16, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        muon.step()
        adamw.step()
    torch.testing.assert_close(one.state_dict(), two.state_dict())


def test_a_loaded_state_goes_on_as_the_saved_one_would(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Net()
    parts = copy.deepcopy(whole)
    _train(whole, make_optimizer("muon", whole, [], 1e-2, 0.1), 0, 6)
    first = make_optimizer("muon", parts, [], 1e-2, 0.1)
    _train(parts, first, 0, 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_optimizer("muon", parts, [], 1e-2, 0.1)
    assert isinstance(second, MuonWithAdamW)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    _train(parts, second, 3, 6)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_recipe_with_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer 'sgd' is not adamw or muon"):
        Recipe.load(Path("model/recipes/atlas-128.toml"), optimizer="sgd")


def test_muon_in_batches_takes_the_steps_of_torchs_muon_and_its_state() -> None:
    """On a GPU the matrices of a shape share their products; torch's own, one after the other, is the oracle."""
    torch.manual_seed(0)
    shapes = ((6, 6), (6, 6), (4, 10), (10, 4), (10, 4))
    one = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    two = [nn.Parameter(p.detach().clone()) for p in one]
    settings = {"lr": 1e-2, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    single, batched = torch.optim.Muon(one, **settings), BatchedMuon(two, **settings)
    for step in range(4):
        if step == 2:  # a run may go on elsewhere
            batched.load_state_dict(copy.deepcopy(single.state_dict()))
        for index, (p, q) in enumerate(zip(one, two, strict=True)):
            p.grad = None if index == 1 and step == 1 else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        single.step()
        batched.step()
        for p, q in zip(one, two, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
