"""`fluid eval`: the folders that scoring tools read, resuming, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from server.cli.evaluation.suites import EvaluationRefused, read_coco, read_geneval, read_prompts
from server.images.recipe import load_recipe
from tests.server.harness import Service, fluid

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [], "prompt": "a photo of two cats"},
]


def lines(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_geneval_is_written_as_its_tool_reads_it(service: Service, tmp_path: Path) -> None:
    """Folders of digits with metadata.jsonl, one JSON object, and samples/DIGITS.png; the next run fills gaps."""
    source, out = lines(tmp_path / "evaluation_metadata.jsonl", *GENEVAL), tmp_path / "out"
    command = ("eval", "geneval", str(source), "-o", str(out), "--steps", "2", "--seed", "5")
    done = fluid(service.settings, *command)
    assert done.returncode == 0, done.stderr
    assert "8 images generated, 8 in" in done.stdout and "evaluate_images.py" in done.stdout
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["00000", "00001"]
    for folder, row in zip(folders, GENEVAL, strict=True):
        assert json.loads((folder / "metadata.jsonl").read_text()) == row
        names = sorted(path.name for path in (folder / "samples").iterdir())
        assert len(names) == 4 and all(re.fullmatch(r"\d+\.png", name) for name in names)
    recipe = load_recipe(folders[1] / "samples" / "0003.png")
    assert recipe["prompt"] == "a photo of two cats" and recipe["seed"] == 5 + (1 << 16) + 3
    record = json.loads((out / "evaluation.json").read_text())
    assert record["checkpoint_sha256"] == recipe["checkpoint_sha256"] and record["options"] == {
        "num_inference_steps": 2
    }

    kept = (out / "00001/samples/0000.png").read_bytes()
    (out / "00000/samples/0002.png").unlink()
    again = fluid(service.settings, *command)
    assert "4 images generated, 8 in" in again.stdout
    assert (out / "00001/samples/0000.png").read_bytes() == kept
    other = fluid(service.settings, *command, "--seed", "6")
    assert other.returncode == 1 and "belongs to an evaluation with seed 5, not 6" in other.stderr


def test_a_prompt_that_fails_keeps_what_is_done(service: Service, tmp_path: Path) -> None:
    source = lines(tmp_path / "mine.jsonl", {"prompt": "a cat", "seed": 9}, {"prompt": "[raise]"})
    out = tmp_path / "out"
    done = fluid(service.settings, "eval", "prompts", str(source), "-o", str(out), "--images", "2", "--at-once", "1")
    assert done.returncode == 2 and "prompt 1 (images/000001-0.png)" in done.stderr
    assert sorted(path.name for path in (out / "images").iterdir()) == ["000000-0.png", "000000-1.png"]
    assert load_recipe(out / "images/000000-1.png")["seed"] == 10


def test_coco_is_one_caption_of_each_image_in_a_fixed_order(tmp_path: Path) -> None:
    """A prefix of the order is a random sample of the images, the same on every machine."""
    rows = [{"image_id": i // 2, "id": 1000 - i, "caption": f" caption {i} "} for i in range(100)]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"annotations": rows}))
    prompts = read_coco(file, 1)
    assert len({prompt.text for prompt in prompts}) == 50
    assert all(int(prompt.text.split()[1]) % 2 for prompt in prompts)  # the lower id of each pair
    assert [prompt.text for prompt in prompts] == [prompt.text for prompt in read_coco(file, 1)]
    assert [prompt.text for prompt in prompts] != sorted(prompt.text for prompt in prompts)
    assert prompts[0].files == ("images/000000.png",)


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (read_geneval, '{"prompt": "x"}', "line 1 has no 'tag'"),
        (read_geneval, "", "has no lines"),
        (read_prompts, '{"prompt": "x"}\n\n{"prompt": 5}', "line 3 must be an object with a text 'prompt'"),
        (read_prompts, '{"prompt": "x", "n": 2}', "'n' cannot be set"),
        (read_prompts, '{"prompt": "x", "model": "fake"}', "'model' cannot be set"),
        (read_prompts, "{", "line 1 is not JSON"),
        (read_coco, '{"annotations": [{"id": 1}]}', "not a file of COCO's captions"),
        (read_coco, "[]", "not a file of COCO's captions"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, read: Callable, text: str, says: str) -> None:
    file = tmp_path / "source"
    file.write_text(text)
    with pytest.raises(EvaluationRefused, match=re.escape(says)):
        read(file, 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--images", "17"), "--images is 17; it must be 1 to 16"),
        (("--limit", "0"), "--limit is 0; it must be at least 1"),
        (("--fid", "real"), "--fid and --inception go together"),
        (("--model", "other"), "--model other is not served. Served: fake"),
    ],
)
def test_flags_are_checked_before_anything_is_generated(
    service: Service, tmp_path: Path, flags: tuple[str, str], says: str
) -> None:
    source = lines(tmp_path / "mine.jsonl", {"prompt": "a cat"})
    done = fluid(service.settings, "eval", "prompts", str(source), "-o", str(tmp_path / "out"), *flags)
    assert done.returncode == 1 and says in done.stderr and not (tmp_path / "out").exists()
