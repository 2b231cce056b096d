"""How the Lua scripts are put together."""

import re

import pytest

from server.queue.scripts import SCRIPTS, expand_keys, load_script


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_holds_what_it_uses_and_no_more(name: str) -> None:
    """Redis runs the whole text in every call: 40 unused functions took as long as ten commands."""
    text = re.sub(r"--.*", "", load_script(name))
    assert not re.search(r"\bkeys\.", text)
    for defined in re.findall(r"^local function (\w+)", text, flags=re.MULTILINE):
        assert len(re.findall(rf"\b{defined}\b", text)) > 1, defined


def test_names_of_keys_become_their_text() -> None:
    text = "redis.call('ZREM', keys.deadlines_zset, id, keys.result_bytes(id, f(a, b), t[1]))"
    assert expand_keys(text) == (
        "redis.call('ZREM', (root .. ':deadlines'), id, "
        "(root .. ':result' .. ':' .. (id) .. ':' .. (f(a, b)) .. ':' .. (t[1])))"
    )


@pytest.mark.parametrize("text", ["keys.job_hash()", "keys.job_hash(a, b)", "keys.unknown", "keys.job_hash(a"])
def test_a_wrong_key_is_refused_when_the_script_is_loaded(text: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        expand_keys(text)
