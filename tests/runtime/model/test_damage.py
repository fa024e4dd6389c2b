"""Files of a bundle with wrong types, deep nesting and huge declarations, their hashes made right again."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx
from measured import certificate_of, made_song, reference_of, rounded

from tfswa.runtime.errors import BundleError, TfxError
from tfswa.runtime.files.hashes import sha256_of, sha256_of_json
from tfswa.runtime.gates import load_gates
from tfswa.runtime.model.bundle import MANIFEST, WEIGHTS, Bundle
from tfswa.runtime.model.keys import EVIDENCE
from tfswa.runtime.model.limits import METADATA_BYTES
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.parity.evidence import read_evidence
from tfswa.runtime.parity.judge import passes

TRIES = 2000 if os.environ.get("TFX_LONG") else 150
WRONG: list[Any] = [None, True, -1, 0, 1e300, 10**40, "", "x" * 50, [], [[]], {}, {"a": 1}, [1, "b", None]]
DEEP = b'{"a":' * 50_000


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


def damaged(value: Any, choose: random.Random) -> Any:
    """The same with one thing in it of another type, gone, or of another name."""
    whole = {"": copy.deepcopy(value)}
    *way, last = ("", *choose.choice([*places(value)]))
    inner: Any = whole
    for key in way:
        inner = inner[key]
    kind = choose.randrange(4)
    if kind == 0 and isinstance(inner, dict) and last != "":
        del inner[last]
    elif kind == 1 and isinstance(inner, dict) and last != "":
        inner["other"] = inner.pop(last)
    else:
        inner[last] = choose.choice(WRONG)
    return whole[""]


def survives(look: Callable[[], Any]) -> bool:
    """Whether it works; a fault is one line."""
    said = ""
    try:
        look()
    except TfxError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000
    return not said


def test_evidence_of_any_kind_of_damage_is_one_line(tiny_bundle: Bundle, tiny_spec: ModelSpec) -> None:
    song = made_song("song", tiny_spec)
    right = reference_of(song, tiny_spec)
    whole = {
        "schema": 2,
        "certificates": [certificate_of(tiny_spec, {"a": (song, right, rounded(right))}).to_dict()],
    }
    model, choose = BundleModel("tiny", tiny_bundle), random.Random(0)
    refused = 0
    for _ in range(TRIES):
        text = json.dumps(damaged(json.loads(json.dumps(whole)), choose)).encode()
        tiny_bundle.add(EVIDENCE, text, kind="evidence")
        refused += not survives(lambda: [passes(one) for one in read_evidence(model)])
    assert refused > TRIES // 2
    for text in (b"", b"\xff", DEEP, b"[]", b"3", b'{"schema": 2}', b'{"schema": 2, "certificates": 3}'):
        tiny_bundle.add(EVIDENCE, text, kind="evidence")
        with pytest.raises(BundleError, match="damaged"):
            read_evidence(model)


def redigested(path: Path, manifest: Any) -> None:
    if isinstance(manifest, dict):
        manifest = {key: value for key, value in manifest.items() if key != "digest"}
        manifest["digest"] = sha256_of_json(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_a_manifest_of_any_kind_of_damage_is_one_line(tiny_bundle: Bundle, tfx: Tfx) -> None:
    tiny_bundle.add("model.onnx", b"\x08\x08", kind="onnx", precision="fp32", details={"plan": ["a"]})
    whole = json.loads((tiny_bundle.path / MANIFEST).read_text())
    choose = random.Random(1)

    def look() -> None:
        model = open_model(tiny_bundle.path)
        assert model.bundle is not None
        model.bundle.find("onnx", "fp32")
        model.bundle.weights()
        assert model.bundle.digest

    refused = 0
    for number in range(TRIES):
        redigested(tiny_bundle.path, damaged(whole, choose))
        refused += not survives(look)
        if number % 25 == 0:
            done = tfx("inspect", tiny_bundle.path)
            assert "Traceback" not in done.err
    assert refused > TRIES // 2
    with (tiny_bundle.path / MANIFEST).open("wb") as stream:
        stream.truncate(METADATA_BYTES + 1)
    with pytest.raises(BundleError, match="cannot be read: it has more than"):
        Bundle.open(tiny_bundle.path)
    (tiny_bundle.path / MANIFEST).write_bytes(DEEP)
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(tiny_bundle.path)


def with_weights(bundle: Bundle, content: bytes) -> Bundle:
    """A bundle whose manifest says that this is right."""
    (bundle.path / WEIGHTS).write_bytes(content)
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    manifest["files"][WEIGHTS]["sha256"] = sha256_of(bundle.path / WEIGHTS)
    redigested(bundle.path, manifest)
    return Bundle.open(bundle.path)


def test_damaged_weights_with_a_matching_hash_are_one_line(tiny_bundle: Bundle) -> None:
    whole = (tiny_bundle.path / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    choose = np.random.default_rng(0)
    made = [b"", whole[:7], whole[:100], whole[:-1], whole + b"x", struct.pack("<Q", 1 << 62) + whole[8:]]
    for name in header:
        if name != "__metadata__":
            for change in (
                {"shape": [1 << 40, 1 << 40]},
                {"data_offsets": [0, 1 << 60]},
                {"dtype": "F8_E5M2"},
            ):
                text = json.dumps({**header, name: {**header[name], **change}}).encode()
                made.append(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    for place in choose.integers(0, 8 + size, TRIES // 3):
        flipped = bytearray(whole)
        flipped[int(place)] ^= 1 << int(choose.integers(8))
        made.append(bytes(flipped))
    refused = sum(not survives(with_weights(tiny_bundle, content).weights) for content in made)
    assert refused > len(made) // 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stft": {"n_fft": 1 << 40, "hop": 1 << 39}}, "n_fft 1099511627776 is more than 1048576"),
        ({"stft": {"sample_rate": 1 << 40}}, "sample_rate 1099511627776 is more than"),
        ({"chunk": {"frames": 1 << 40}}, "frames 1099511627776 is more than"),
        ({"chunk": {"frames": 1 << 20}}, "bytes a chunk, at most 4294967296 are allowed"),
        ({"stems": [f"s{number}" for number in range(3000)]}, "the count of stems 3000 is more than 256"),
        ({"chunk": {"context": 1.5}}, "chunk.context is 1.5"),
        ({"parameters": "many"}, "spec.parameters is 'many'"),
    ],
)
def test_huge_shapes_are_refused_before_anything_is_allocated(changed: dict[str, Any], words: str) -> None:
    spec = ModelSpec("x", ("a", "b"), stft=StftSpec(), chunk=ChunkSpec()).to_dict()
    for key, value in changed.items():
        spec[key] = {**spec[key], **value} if isinstance(value, dict) else value
    with pytest.raises(BundleError, match=words):
        ModelSpec.from_dict(spec)


@pytest.mark.parametrize("text", ["fp32 = " + "[" * 5000, "[fp32]\nsnr_db = [1]", "fp32 = 3", "\x00"])
def test_gates_of_any_kind_of_damage_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "gates.toml").write_text(text)
    assert not survives(lambda: load_gates(tmp_path / "gates.toml"))
