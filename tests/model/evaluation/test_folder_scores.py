"""Scores of `fluid eval` folders, by the real torch-fidelity and transformers with random weights."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.evaluation import folder_scores
from model.evaluation.folder_scores import ScoreError, clip_score, frechet_distance

PACKAGES = ("torch-fidelity==0.4.0",)
#: The few functions that it uses of torchvision, whose wheel works with one build of torch only.
TORCHVISION = {
    "__init__.py": "from . import datasets, transforms\n",
    "datasets.py": "class CIFAR10: ...\nclass CIFAR100: ...\nclass STL10: ...\n",
    "transforms/__init__.py": (
        "from . import functional\n"
        "class Compose:\n"
        "    def __init__(self, parts): self.parts = parts\n"
        "    def __call__(self, image):\n"
        "        for part in self.parts: image = part(image)\n"
        "        return image\n"
    ),
    "transforms/functional.py": (
        "import numpy as np, torch\n"
        "def pil_to_tensor(image): return torch.from_numpy(np.array(image)).permute(2, 0, 1)\n"
    ),
}
PROMPTS = ["red", "green", "blue", "red"]


@pytest.fixture(scope="module")
def packages() -> Path:
    """The scoring packages, installed once into the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(" ".join([*PACKAGES, *TORCHVISION.values(), sys.version]).encode()).hexdigest()[:16]
    folder = base / "fluid-serve" / f"test-scores-{digest}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}-{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(part), *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"the scoring packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
        for name, text in TORCHVISION.items():
            (part / "torchvision" / name).parent.mkdir(parents=True, exist_ok=True)
            (part / "torchvision" / name).write_text(text)
        part.rename(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation of four images, and two folders of real ones: the same images, and others."""
    rng = np.random.default_rng(0)
    for name, shift in (("images", 0), ("same", 0), ("other", 120)):
        (tmp_path / name).mkdir()
        for index in range(4):
            pixels = (np.random.default_rng(index).integers(0, 120, (32, 32, 3)) + shift).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index:06d}.png")
    (tmp_path / "evaluation.json").write_text(json.dumps({"suite": "prompts", "seed": int(rng.integers(9))}))
    return tmp_path


def score(packages: Path, folder: Path, *flags: str, prompts: list[str] = PROMPTS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model.evaluation.folder_scores", str(folder / "evaluation.json"), *flags]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        command,
        input="".join(f"{prompt}\n" for prompt in prompts),
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def random_inception(packages: Path, file: Path) -> None:
    """Random weights in the layout of torch-fidelity's Inception v3, whose constructor loads a file."""
    program = (
        "import sys, torch; from torch_fidelity import feature_extractor_inceptionv3 as m;"
        "torch.manual_seed(0); C = m.FeatureExtractorInceptionV3; C.load_state_dict = lambda self, state: None;"
        "torch.save({}, sys.argv[1]); made = C('x', ['2048'], feature_extractor_weights_path=sys.argv[1]);"
        "[torch.nn.init.kaiming_normal_(p) for p in made.parameters() if p.dim() == 4];"
        "torch.save(made.state_dict(), sys.argv[1])"
    )
    env = os.environ | {"PYTHONPATH": str(packages)}
    subprocess.run([sys.executable, "-c", program, str(file)], env=env, check=True, timeout=300)


def random_clip(folder: Path) -> None:
    """A tiny CLIP model with a vocabulary of single characters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder.mkdir()
    words = [f"{letter}{end}" for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tiny, **ends, "vocab_size": len(words), "max_position_embeddings": 16},
        vision_config={**tiny, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


@pytest.mark.slow
def test_the_libraries_scores_are_in_the_record(packages: Path, folder: Path) -> None:
    """The distance of images to themselves is 0, to others it is not; the record keeps what it had."""
    random_inception(packages, folder / "inception.pth")
    random_clip(folder / "clip")
    clip = score(folder, folder, "--clip", str(folder / "clip"))  # transformers would import the stand-in
    assert clip.returncode == 0, clip.stderr
    inception = ("--inception", str(folder / "inception.pth"))
    same = score(packages, folder, "--fid", str(folder / "same"), *inception)
    assert same.returncode == 0, same.stderr
    scores = json.loads((folder / "evaluation.json").read_text())["scores"]
    assert abs(scores["fid"]) < 1e-3 and 0 <= scores["clip_score"] <= 100 and scores["scored_images"] == 4
    largest = next((folder / "other").glob("*.png"))  # those of COCO have many sizes
    Image.open(largest).resize((40, 32)).save(largest)
    other = score(packages, folder, "--fid", str(folder / "other"), *inception)
    assert json.loads(other.stdout.splitlines()[-1])["fid"] > scores["fid"] + 1e-3
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["suite"] == "prompts" and record["scores"]["clip_score"] == scores["clip_score"]


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ScoreError, match=r"pip install '\.\[eval\]' in a clone"):
        frechet_distance(folder / "images", folder / "same", folder / "inception.pth")
    with pytest.raises(ScoreError, match="has no config"):
        clip_score([folder / "images/000000.png"], ["red"], folder)


def test_scores_of_other_images_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distance of 1,000 images stood under "scored_images": 2000."""
    record = folder / "evaluation.json"
    record.write_text(json.dumps({"suite": "prompts", "scores": {"fid": 3.5, "scored_images": 3}}))
    monkeypatch.setattr(folder_scores, "clip_score", lambda *_: 25.0)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(PROMPTS)))
    folder_scores.main([str(record), "--clip", str(folder)])
    assert json.loads(record.read_text())["scores"] == {"clip_score": 25.0, "scored_images": 4}


def test_images_that_belong_to_no_prompt_are_not_scored(folder: Path) -> None:
    done = score(folder, folder, "--clip", str(folder), prompts=PROMPTS[:3])
    assert done.returncode == 1 and "has 4 images, standard input 3 prompts" in done.stderr


def test_the_end_of_the_last_line_is_no_prompt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`< prompts`, as the help has it, ended in "4 images for 5 prompts: remove other files"."""
    monkeypatch.setattr(folder_scores, "clip_score", lambda files, prompts, folder: float(len(prompts)))
    for text in ("\n".join(PROMPTS), "\n".join(PROMPTS) + "\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        folder_scores.main([str(folder / "evaluation.json"), "--clip", "anything"])
        assert json.loads(capsys.readouterr().out)["clip_score"] == 4


def test_flags_and_records_that_cannot_be_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were tracebacks, that of the record after an hour of scoring."""
    with pytest.raises(SystemExit, match="2"):
        folder_scores.main([str(folder / "evaluation.json"), "--fid", str(folder / "same")])
    assert "--fid needs --inception" in capsys.readouterr().err
    for record, says in (("{", "is no JSON"), ("[]", "holds no object"), (None, "No such file")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(PROMPTS)))
        file = folder / "evaluation.json"
        file.write_text(record) if record else file.unlink()
        with pytest.raises(SystemExit, match=says):
            folder_scores.main([str(file)])
