"""A measuring that was stopped goes on where it was, and what was not measured here is not believed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.files import caches
from tfswa.runtime.machine import user_cache
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.parity.candidates import Candidate
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.compare import certify
from tfswa.runtime.parity.corpus import Item, adversaries
from tfswa.runtime.parity.kept import ItemFigures, Kept
from tfswa.runtime.parity.pace import ParityStep
from tfswa.runtime.songs.synthetic import synthetic_song


class Stopped(Exception):
    """As Ctrl-C would."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(network: BundleModel, stop: int = 0, **options: Any) -> tuple[list[Certificate], list[int]]:
    """Measure; raise at an item's turn where one is named. Returns also the items that were measured."""
    corpus = [Item.of(synthetic_song(network.spec, 1.0)), *adversaries(network.spec)[:4]]
    turns: list[int] = []

    def report(step: ParityStep) -> None:
        if step.number == stop:
            raise Stopped
        turns.append(step.number)

    found = certify(network, corpus, [Candidate("torch")], report=report, resume=True, **options)
    return found, sorted(set(turns))


def without_time(certificate: Certificate) -> Certificate:
    return dataclasses.replace(certificate, date="", x_realtime=None)


def test_a_stopped_measuring_goes_on_where_it_was(network: BundleModel) -> None:
    with pytest.raises(Stopped):
        run(network, stop=4, reference="float64")
    (resumed,), turns = run(network, reference="float64")
    assert turns == [4, 5]
    (whole,), turns = run(network, reference="float64")  # what was finished is measured anew
    assert turns == [1, 2, 3, 4, 5]
    assert without_time(resumed) == without_time(whole)
    assert resumed.x_realtime
    assert set(resumed.reference_rounding_db) == set(network.spec.stems)


def test_another_reference_takes_nothing_up(network: BundleModel) -> None:
    with pytest.raises(Stopped):
        run(network, stop=4)
    _, turns = run(network, reference="float64")
    assert turns == [1, 2, 3, 4, 5]


def test_a_listener_hears_every_song(network: BundleModel) -> None:
    with pytest.raises(Stopped):
        run(network, stop=4)
    heard: list[str] = []
    _, turns = run(network, listener=lambda song, name, right, found: heard.append(name))
    assert (turns, heard) == ([1, 2, 3, 4, 5], ["torch fp32"])


ROW = {"axis": "batch", "value": 2, "identical": True, "snr_db": None}
EMPTY = json.loads(json.dumps(dataclasses.asdict(ItemFigures())))


def kept_text(**changed: Any) -> str:
    return json.dumps({"identity": "{}", "items": {"a": {**EMPTY, **changed}}})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"identity": "{}", "items": {"a": {}}}',
        "\0",
        kept_text(graph=5),
        kept_text(axes=[{**ROW, "value": "2"}]),
        kept_text(axes=[ROW, 1]),
        kept_text(non_finite={"a": "1"}),
        kept_text(wall_seconds="1"),
        kept_text(other=1),
    ],
)
def test_a_damaged_file_is_ignored(content: str) -> None:
    kept = Kept({})
    kept.add("a", ItemFigures(non_finite={"a": 1}))
    assert Kept({}).find("a") == ItemFigures(graph=[], signal=[], quality=[], axes=[], non_finite={"a": 1})
    (path,) = (user_cache() / "parity").iterdir()
    for write in (path.write_bytes, lambda whole: caches.put(path, whole)):
        write(content.encode())
        assert Kept({}).find("a") is None
    kept.clear()
    assert not path.exists()
