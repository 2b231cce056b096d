"""What people type for a class -> the class."""

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
        ("partridge", "partridge"),  # the first name of one class wins over another name of a different one
    ],
)
def test_a_name_or_index_finds_its_class(prompt: str, label: str) -> None:
    assert match_label(prompt, LABELS, "mar") == label


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("golden retreiver", "Close to it: golden retriever"),
        ("crane", r"names several labels of mar \(1: crane \(1\); 2: crane \(2\)\)"),
        ("crawfish", "names several labels"),
        ("8", "0 to 7"),
        ("zzz", "GET /v1/models"),
    ],
)
def test_what_is_no_class_is_refused_with_the_closest(prompt: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        match_label(prompt, LABELS, "mar")
    assert caught.value.param == "prompt"
