"""From icons' names and drawings' titles to nouns."""

from __future__ import annotations

import pytest

from model.data.atlas.clipart_titles import title_noun
from model.data.atlas.naming import canonical, icon_noun


@pytest.mark.parametrize(
    ("icon", "noun"),
    [
        ("castle-2", "castle"),
        ("shopping-basket-2", "shopping basket"),
        ("puppy", "dog"),
        ("red-apple", "apple"),
        ("cloud", "cloud"),
        ("cloud-download-1", None),
        ("arrow-left", None),
        ("abstract-119", None),
        ("p90", None),
        ("man-15", None),
        ("a-very-long-icon-name", None),
    ],
)
def test_only_names_of_things_count(icon: str, noun: str | None) -> None:
    assert icon_noun(icon) == noun


def test_one_thing_has_one_name() -> None:
    """A core thing's emoji label and its synonyms are its name, so that its held-out pairs are held out everywhere."""
    assert canonical("wrapped gift") == canonical("present") == "gift"
    assert canonical("zeppelin") == "zeppelin"


@pytest.mark.parametrize(
    ("title", "noun"),
    [
        ("Cartoon Cat", "cat"),
        ("An Apple", "apple"),
        ("dog on a leash", "dog"),
        ("Fire Engine - side view", "fire engine"),
        ("apple (B and W)", None),
        ("Dog House", None),
        ("Three cats", None),
        ("Untitled", None),
        ("", None),
    ],
)
def test_a_drawing_is_what_its_title_ends_in(title: str, noun: str | None) -> None:
    """ "Dog House" is no dog, and of several cats a caption would say one."""
    assert title_noun(title, {"cat", "apple", "dog", "fire engine", "engine"}) == noun
