"""Who may ask, and how often."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tfswa.runtime.errors import UsageError
from tfswa.runtime.service.access import ANYBODY, Access, TooMany, WrongKey
from tfswa.runtime.service.keys import Keys


def test_a_key_is_its_owner_and_nothing_else_is(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    one, two = keys.add("one"), keys.add("two")
    access = Access(keys, 10, 1)
    assert access.name_of(f"Bearer {one}") == "one"
    assert access.name_of(f"bearer  {two}") == "two"
    for wrong in (None, "", one, f"Basic {one}", f"Bearer {one}x", "Bearer ", f"Bearer {one[:-1]}"):
        with pytest.raises(WrongKey, match="send the header Authorization: Bearer KEY"):
            access.name_of(wrong)
    Keys(keys.path).remove("one")
    assert access.name_of(f"Bearer {one}") == "one"  # until it is told
    access.reload()
    with pytest.raises(WrongKey):
        access.name_of(f"Bearer {one}")
    assert access.name_of(f"Bearer {two}") == "two"
    keys.path.write_text("no keys")
    with pytest.raises(UsageError, match="is no file of keys"):
        access.reload()
    assert access.name_of(f"Bearer {two}") == "two"


def test_without_keys_everybody_is_one() -> None:
    assert Access(None, 10, 1).name_of(None) == ANYBODY


def test_so_many_requests_at_once_and_as_many_in_each_minute() -> None:
    now = 0.0
    access = Access(None, 6, 1, lambda: now)
    for _ in range(6):
        access.count("one")
    with pytest.raises(TooMany, match="more than 6 requests in a minute: wait 10 s") as found:
        access.count("one")
    assert found.value.seconds == pytest.approx(10)
    access.count("two")  # which has its own
    now = 9.9
    with pytest.raises(TooMany, match="wait 1 s"):
        access.count("one")
    now = 10.1
    access.count("one")
    with pytest.raises(TooMany):
        access.count("one")
    now = 1000.0
    for _ in range(6):
        access.count("one")
    with pytest.raises(TooMany):
        access.count("one")


def test_so_many_streams_of_a_key() -> None:
    access = Access(None, 10, 2)
    with ExitStack() as stack:
        for key in ("one", "one", "two"):
            stack.enter_context(access.stream(key))
        assert access.streams == 3
        with pytest.raises(TooMany, match="2 streams are open, the most of a key: close one"):
            stack.enter_context(access.stream("one"))
        assert access.streams == 3
    assert access.streams == 0
    with access.stream("one"):
        assert access.streams == 1
