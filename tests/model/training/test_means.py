"""The mean of two checkpoints, by the command that a developer runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.data.fixed_sample import holds_styles_out
from model.evaluation.cards.facts import beginning
from model.training.means.__main__ import main
from tests.model.conftest import saved


def test_a_mean_lies_between_and_says_what_it_is(tmp_path: Path) -> None:
    """Scores of one of the two would not be the mean's."""
    one, other = (saved(tmp_path / str(seed), seed, sampling={"of": seed}) for seed in (1, 2))
    main([str(one), str(other), "--share", "0.25", "--out", str(tmp_path / "mean")])
    a, b, both = (load_checkpoint(folder) for folder in (one, other, tmp_path / "mean"))
    for name, value in both.model.state_dict().items():
        expected = 0.75 * a.model.state_dict()[name] + 0.25 * b.model.state_dict()[name]
        assert torch.allclose(value.float(), expected.float(), atol=0.02), name  # saved as bfloat16
    assert both.about["training"]["mean_with"] == {"name": "tiny", "sha256": a.sha256, "share": 0.75}
    assert both.about["sampling"] == {"of": 2}
    assert "metrics" not in both.about and both.sha256 not in (a.sha256, b.sha256)
    assert beginning(both.about["training"]) == (
        f"; the mean of 25% of the result and 75% of the weights {a.sha256[:12]}"
    )


def test_what_a_training_changed_is_carried_to_a_copy_of_its_start(tmp_path: Path) -> None:
    """A guidance distillation takes longer than a short training, and need not be made again after it."""
    copy, other, start = (saved(tmp_path / str(seed), seed, sampling={"of": seed}) for seed in (1, 2, 3))
    main([str(copy), str(other), "--since", str(start), "--share", "0.5", "--out", str(tmp_path / "carried")])
    one, two, three, out = (load_checkpoint(f) for f in (copy, other, start, tmp_path / "carried"))
    for name, value in out.model.state_dict().items():
        a, b, c = (each.model.state_dict()[name].float() for each in (one, two, three))
        assert torch.allclose(value.float(), a + 0.5 * (b - c), atol=0.03), name
    assert out.about["training"] == {"steps": 1, "carried": {"steps": 1, "share": 0.5, "since": three.sha256}}
    assert out.about["sampling"] == {"of": 1}, "presets fit the copy, whose weights hold guidance"
    for name, value in one.tokenizer.state_dict().items():
        back = "a sharper decoder of the copy once went back"
        assert torch.allclose(out.tokenizer.state_dict()[name], value, rtol=0.01, atol=1e-4), back


def test_what_was_carried_and_seen_before_is_not_forgotten(tmp_path: Path) -> None:
    """A second change that was carried over, or a mean, once hid that the first had shown every style."""
    shown = saved(tmp_path / "shown", 1, training={"steps": 1, "styles_held_out": False})
    one, other, start = (saved(tmp_path / str(seed), seed) for seed in (2, 3, 4))
    first, second, mean = (str(tmp_path / name) for name in ("first", "second", "mean"))
    main([str(one), str(shown), "--since", str(start), "--out", first])
    main([first, str(other), "--since", str(start), "--share", "0.25", "--out", second])
    training = load_checkpoint(Path(second)).about["training"]
    assert training["carried"]["share"] == 0.25 and training["carried"]["carried"]["share"] == 0.5
    assert not holds_styles_out(training)
    main([second, str(other), "--out", mean])
    assert not holds_styles_out(load_checkpoint(Path(mean)).about["training"])


def test_what_has_no_mean_is_one_line(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", preset="compare-random-continuous-small")
    for words, says in (
        ([str(one), str(two), "--out", str(tmp_path / "mean")], "different sizes"),
        ([str(one), str(one), "--out", str(one)], "is one of those that are read"),
        ([str(one), str(one), "--since", str(two), "--out", str(two)], "is one of those that are read"),
        ([str(one), str(tmp_path / "none"), "--out", str(tmp_path / "mean")], "none"),
    ):
        with pytest.raises(SystemExit, match=says):
            main(words)
