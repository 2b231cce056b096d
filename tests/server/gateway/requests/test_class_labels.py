"""Matching prompts to class labels."""

import pytest

from server.errors import InvalidRequest
from server.gateway.requests.class_labels import match_label

LABELS = ("tench, Tinca tinca", "crane (1)", "crane (2)", "golden retriever", "ruffed grouse, partridge", "partridge",
          "crayfish, crawfish", "spiny lobster, crawfish")  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("golden retriever", "golden retriever"),
        ("  A  Golden_Retriever ", "golden retriever"),
        ("3", "golden retriever"),
        ("tinca tinca", "tench"),
        ("crane (2)", "crane (2)"),
        ("partridge", "partridge"),  # the first name of one class wins over a later name of another
    ],
)
def test_a_prompt_matches_a_class_by_name_or_index(prompt: str, label: str) -> None:
    assert match_label(prompt, LABELS, "mar") == label


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("golden retreiver", "Similar: golden retriever"),
        ("crane", r"matches several labels of mar \(1: crane \(1\); 2: crane \(2\)\)"),
        ("crawfish", "matches several labels"),
        ("8", "0 to 7"),
        ("zzz", "GET /v1/models"),
    ],
)
def test_an_unknown_or_ambiguous_class_is_rejected_with_suggestions(prompt: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        match_label(prompt, LABELS, "mar")
    assert caught.value.param == "prompt"
