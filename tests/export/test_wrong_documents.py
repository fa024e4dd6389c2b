"""calibration.json and precision-plan.json with any value in any place: one line, whoever wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx is not installed: export needs it")

from tfswa.export.plan import PrecisionPlan
from tfswa.export.quantize import CALIBRATION, load_ranges
from tfswa.runtime.errors import BundleError, ConfigError, TfxError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e300,
    10**400,
    "x",
    [],
    [[]],
    [3],
    {},
    {"x": []},
    {"x": float("nan")},
)
DEEP = ("[" * 100_000, '{"a": ' * 100_000, '{"ranges": ' * 70 + "1" + "}" * 70, "\0", "\udcff", "")


def texts(whole: dict[str, Any]) -> Iterator[bytes]:
    """A right document with one value or none of it replaced, and what is none."""
    for wrong in WRONG:
        yield json.dumps(wrong).encode()
        for key in whole:
            yield json.dumps({**whole, key: wrong}).encode()
    for key in whole:
        yield json.dumps({other: whole[other] for other in whole if other != key}).encode()
    for text in DEEP:
        yield text.encode("utf-8", "surrogateescape")


def refusal(read: Callable[[], object], kind: type[TfxError]) -> str | None:
    """What is said of a document; None where it is taken."""
    try:
        read()
    except kind as error:
        return str(error)
    return None


def check_short(said: list[str | None]) -> None:
    refused = [words for words in said if words is not None]
    assert len(refused) > 30
    assert not [words for words in refused if "\n" in words or len(words) > 1000]


def test_ranges(tiny_bundle: Bundle) -> None:
    model, said = BundleModel("mine", tiny_bundle), []
    right = {"source": tiny_bundle.digest, "ranges": {"layer": 1.5}}
    tiny_bundle.add(CALIBRATION, json.dumps(right).encode(), kind="document")
    assert load_ranges(model) == {"layer": 1.5}
    for text in texts(right):
        tiny_bundle.add(CALIBRATION, text, kind="document")
        said.append(refusal(lambda: load_ranges(model), BundleError))
    check_short(said)
    assert all("calibrate again" in words for words in said if words)


def test_plans(tmp_path: Path) -> None:
    path, said = tmp_path / "plan.json", []
    right = {"fp32": ["a"], "int8": ["b"], "source": "ab", "measured": {}}
    for text in texts(right):
        path.write_bytes(text)
        said.append(refusal(lambda: PrecisionPlan.load(path).keeps("a"), ConfigError))
    check_short(said)
