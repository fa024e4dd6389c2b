"""Keys of a service: made once, kept as hashes, taken back."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path

import pytest

from tfswa.runtime.errors import UsageError
from tfswa.runtime.service.keys import Keys


def test_a_key_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = Keys(path).add("team-a")
    other = Keys(path).add("team.b_2")
    assert re.fullmatch(r"tfx_[A-Za-z0-9_-]{43}", key)
    assert key != other
    keys = Keys(path)
    assert (keys.name_of(key), keys.name_of(other)) == ("team-a", "team.b_2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert key not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text


@pytest.mark.parametrize("wrong", ["", "tfx_", "x" * 5000, "tfx_é", "\udcff", "team-a"])
def test_other_keys_are_nobodys(tmp_path: Path, wrong: str) -> None:
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("team-a")
    assert keys.name_of(wrong) is None
    assert keys.name_of(key[:-1]) is None
    assert keys.name_of(key + "A") is None
    assert keys.name_of(json.loads(keys.path.read_text())["keys"]["team-a"]["sha256"]) is None


def test_a_key_is_taken_back(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    key, other = keys.add("one"), keys.add("two")
    keys.remove("one")
    assert keys.name_of(key) is None
    assert Keys(keys.path).name_of(other) == "two"
    with pytest.raises(UsageError, match=r"has no key 'tow', did you mean 'two'\?"):
        keys.remove("tow")
    with pytest.raises(UsageError, match="has a key 'two' already"):
        keys.add("two")


@pytest.mark.parametrize("name", ["", "-x", "a b", "é", "a" * 65, "a/b", "a\n"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a key"):
        Keys(tmp_path / "keys.json").add(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no file of keys"),
        (b"[]", "is no file of keys"),
        (b"\xff\xfe", "is no file of keys"),
        (b'{"version": 1, "keys": {"a": {"sha256": "abc", "made": "now"}}}', "is no file of keys"),
        (b'{"version": 1, "keys": {"a": "b"}}', "is no file of keys"),
        (b"[" * 100_000, "is no file of keys"),
        (b'{"version": 2, "keys": {}}', "is of version 2, this tfx knows 1"),
    ],
)
def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        Keys(path)
    assert path.read_bytes() == content


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "missing" / "keys.json")
    with pytest.raises(UsageError, match="cannot be written"):
        keys.add("one")
    assert keys.hashes == {}
    with pytest.raises(UsageError, match="cannot be read"):
        Keys(tmp_path)
