"""The bundle: written whole or not at all, checked when read, and never a place where entries get lost."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from system_calls import STOPS, Stop, stopped_at

from tfswa.runtime.errors import BundleError, OutputExists, UsageError
from tfswa.runtime.files import publish
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model import bundle as bundle_module
from tfswa.runtime.model.bundle import MANIFEST, WEIGHTS, Bundle
from tfswa.runtime.model.spec import ModelSpec

Weights = dict[str, NDArray[Any]]
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="file permissions do not bind root")


def writes(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def seal(path: Path) -> Bundle:
    """Make a bundle sealed, as the embedded one is."""
    bundle = Bundle.open(path)
    bundle.seal()
    again = Bundle.open(path)
    assert bundle.sealed
    assert again.sealed
    assert again.files == bundle.files
    return again


def test_round_trip(tiny_bundle: Bundle, tiny_spec: ModelSpec, tiny_weights: Weights) -> None:
    again = Bundle.open(tiny_bundle.path)
    assert again.spec == tiny_spec
    assert again.provenance == {"made": "by a test"}
    assert not again.sealed
    assert list(again.files) == [WEIGHTS]
    assert again.files[WEIGHTS].kind == "weights"
    assert again.files[WEIGHTS].precision == "fp32"
    assert again.files[WEIGHTS].bytes == (again.path / WEIGHTS).stat().st_size
    loaded = again.weights()
    assert loaded.keys() == tiny_weights.keys()
    for name, value in tiny_weights.items():
        assert loaded[name].shape == value.shape, name
        assert loaded[name].dtype == value.dtype, name
        np.testing.assert_array_equal(loaded[name], value)
    assert listing(again.path) == [MANIFEST, WEIGHTS]


def test_half_precision_rounds_the_floats_alone(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_weights: Weights
) -> None:
    made = Bundle.create(tmp_path / "half.tfx", tiny_spec, tiny_weights, precision="fp16")
    loaded = made.weights()
    assert made.files[WEIGHTS].precision == "fp16"
    assert loaded["count"].dtype == np.int64
    assert loaded["matrix"].dtype == np.float16
    np.testing.assert_array_equal(loaded["matrix"], tiny_weights["matrix"].astype(np.float16))
    assert made.files[WEIGHTS].bytes < 2 * sum(w.nbytes for w in tiny_weights.values()) + 1000


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    weights = {"fine": np.ones(3, np.float32), "huge": np.array([1.0, 70_000.0], np.float32)}
    with pytest.raises(BundleError, match="huge is not finite in fp16"):
        Bundle.create(tmp_path / "half.tfx", tiny_spec, weights, precision="fp16")
    assert listing(tmp_path) == []
    Bundle.create(tmp_path / "half.tfx", tiny_spec, weights, precision="fp32")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, tiny_spec: ModelSpec, value: float) -> None:
    with pytest.raises(BundleError, match="bad is not finite in fp32"):
        Bundle.create(tmp_path / "x.tfx", tiny_spec, {"bad": np.array([value], np.float32)})
    assert listing(tmp_path) == []


def test_an_unknown_precision_is_refused(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"int3.*fp32"):
        Bundle.create(tmp_path / "x.tfx", tiny_spec, {}, precision="int3")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("at", [0, 9, -1])
def test_a_flipped_byte_in_the_weights_is_refused(tiny_bundle: Bundle, at: int) -> None:
    flip(tiny_bundle.path / WEIGHTS, at)
    with pytest.raises(BundleError, match=rf"{WEIGHTS} is damaged.*SHA-256"):
        Bundle.open(tiny_bundle.path).weights()


def test_a_flipped_byte_in_an_added_file_is_refused_and_the_rest_stays_usable(tiny_bundle: Bundle) -> None:
    tiny_bundle.add("model.onnx", writes(b"graph"), kind="onnx", precision="fp32")
    flip(tiny_bundle.path / "model.onnx", 2)
    again = Bundle.open(tiny_bundle.path)
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        again.file("model.onnx")
    assert again.weights()


def test_any_flipped_byte_in_the_manifest_is_refused(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.path / MANIFEST
    sound = path.read_bytes()
    for at in range(0, len(sound), 3):
        flip(path, at)
        with pytest.raises(BundleError, match=r"manifest\.json|tiny\.tfx"):
            Bundle.open(tiny_bundle.path)
        path.write_bytes(sound)
    assert Bundle.open(tiny_bundle.path)


def test_a_truncated_file_is_refused(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="damaged"):
        tiny_bundle.weights()


def test_a_missing_file_is_named(tiny_bundle: Bundle) -> None:
    (tiny_bundle.path / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=rf"{WEIGHTS} is missing"):
        tiny_bundle.weights()


def test_a_file_that_was_never_added_is_named_with_what_there_is(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=rf"holds no model\.onnx; it holds {WEIGHTS}"):
        tiny_bundle.file("model.onnx")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "zip"}', b"null"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(tmp_path)


def test_places_that_are_no_bundle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BundleError, match=path.name):
            Bundle.open(path)


def test_another_version_is_refused(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.path / MANIFEST
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(BundleError, match="bundle version 2 is not 1"):
        Bundle.open(tiny_bundle.path)


def test_what_is_there_is_replaced_by_force_alone(
    tiny_bundle: Bundle, tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    before = (tiny_bundle.path / MANIFEST).read_bytes()
    other = {"w": np.zeros(2, np.float32)}
    with pytest.raises(OutputExists, match="--force"):
        Bundle.create(tiny_bundle.path, tiny_spec, other)
    assert (tiny_bundle.path / MANIFEST).read_bytes() == before
    tiny_bundle.add("model.onnx", writes(b"old"), kind="onnx")
    replaced = Bundle.create(tiny_bundle.path, tiny_spec, other, force=True)
    assert list(replaced.weights()) == ["w"]
    assert listing(replaced.path) == [MANIFEST, WEIGHTS]
    assert listing(tmp_path) == ["tiny.tfx", f"tiny.tfx/{MANIFEST}", f"tiny.tfx/{WEIGHTS}"]


def test_a_failed_replacement_leaves_the_old_bundle(tiny_bundle: Bundle, tiny_spec: ModelSpec) -> None:
    before = listing(tiny_bundle.path.parent)
    with pytest.raises(BundleError):
        Bundle.create(tiny_bundle.path, tiny_spec, {"w": np.array([np.nan])}, force=True)
    assert listing(tiny_bundle.path.parent) == before
    assert Bundle.open(tiny_bundle.path).weights()


def test_a_replacement_that_cannot_take_its_place_gives_it_back(
    tiny_bundle: Bundle, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(*given: Any) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(publish, "rename_flagged", exchange)
    with pytest.raises(UsageError, match="Input/output error"):
        Bundle.create(tiny_bundle.path, tiny_spec, {}, force=True)
    assert [path.name for path in tiny_bundle.path.parent.iterdir()] == ["tiny.tfx"]
    assert "matrix" in Bundle.open(tiny_bundle.path).weights()


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, tiny_spec: ModelSpec, force: bool) -> None:
    folder, file = tmp_path / "music", tmp_path / "song.wav"
    folder.mkdir()
    (folder / "precious").write_text("x")
    (tmp_path / "empty").mkdir()
    file.write_text("x")
    before = listing(tmp_path)
    for path in (folder, file, tmp_path / "empty"):
        with pytest.raises(OutputExists, match=path.name):
            Bundle.create(path, tiny_spec, {}, force=force)
    assert listing(tmp_path) == before


def test_someone_elses_manifest_is_not_ours_to_replace(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    folder = tmp_path / "web-app"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"name": "a web app", "icons": []}')
    with pytest.raises(OutputExists, match="not a bundle"):
        Bundle.create(folder, tiny_spec, {}, force=True)
    assert listing(folder) == [MANIFEST]


def test_a_damaged_bundle_can_be_replaced(tiny_bundle: Bundle, tiny_spec: ModelSpec) -> None:
    path = tiny_bundle.path / MANIFEST
    path.write_text(path.read_text().replace('"sealed": false', '"sealed": true'))
    assert Bundle.create(tiny_bundle.path, tiny_spec, {}, force=True).weights() == {}


def test_force_through_a_link_replaces_the_bundle_it_points_to(
    tiny_bundle: Bundle, tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    link = tmp_path / "latest.tfx"
    link.symlink_to(tiny_bundle.path)
    Bundle.create(link, tiny_spec, {}, force=True)
    assert link.is_symlink()
    assert Bundle.open(tiny_bundle.path).weights() == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.tfx", "tiny.tfx"]


def test_leftovers_of_a_killed_process_go(tiny_bundle: Bundle, tiny_spec: ModelSpec) -> None:
    left = tiny_bundle.path.with_name(".tiny.tfx.partial-0123456789abcdef")
    left.mkdir()
    (left / "leftover").touch()
    made = Bundle.create(tiny_bundle.path, tiny_spec, {}, force=True)
    assert listing(made.path) == [MANIFEST, WEIGHTS]
    assert [path.name for path in made.path.parent.iterdir()] == ["tiny.tfx"]


def test_a_place_below_a_file_is_a_usage_error(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    (tmp_path / "file").touch()
    for below in ("a.tfx", "deep/a.tfx"):
        with pytest.raises(UsageError, match=r"cannot write .*a\.tfx.*choose another place"):
            Bundle.create(tmp_path / "file" / below, tiny_spec, {})


@not_as_root
def test_a_read_only_place_is_a_usage_error(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        Bundle.create(tmp_path / "a.tfx", tiny_spec, {})


def test_parents_are_made(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    assert Bundle.create(tmp_path / "a" / "b" / "c.tfx", tiny_spec, {}).weights() == {}


def test_added_files_are_listed_checked_and_found(tiny_bundle: Bundle) -> None:
    digest = tiny_bundle.digest
    path = tiny_bundle.add(
        "engines/a.engine", writes(b"engine"), kind="engine", precision="fp16", details={"gpu": "x"}
    )
    assert path == tiny_bundle.path / "engines" / "a.engine"
    tiny_bundle.add("model.onnx", writes(b"graph"), kind="onnx", precision="fp32")
    for bundle in (tiny_bundle, Bundle.open(tiny_bundle.path)):
        entry = bundle.files["engines/a.engine"]
        assert entry.sha256 == hashlib.sha256(b"engine").hexdigest() == sha256_of(path)
        assert (entry.bytes, entry.kind, entry.precision) == (6, "engine", "fp16")
        assert entry.details == {"gpu": "x"}
        assert bundle.file("engines/a.engine").read_bytes() == b"engine"
        assert bundle.find("engine", "fp16") == bundle.find("engine") == "engines/a.engine"
        assert bundle.find("engine", "fp32") is None
        assert bundle.find("torchscript") is None
        assert bundle.digest == digest
    assert listing(tiny_bundle.path) == ["engines", "engines/a.engine", MANIFEST, "model.onnx", WEIGHTS]


def test_the_digest_is_that_of_spec_and_weights(
    tmp_path: Path, tiny_bundle: Bundle, tiny_spec: ModelSpec, tiny_weights: Weights
) -> None:
    same = Bundle.create(tmp_path / "b.tfx", tiny_spec, tiny_weights, provenance={"other": 1})
    assert same.digest == tiny_bundle.digest
    assert Bundle.open(same.path).digest == same.digest
    stems = ModelSpec.from_dict({**tiny_spec.to_dict(), "stems": ["voice", "accompaniment"]})
    assert Bundle.create(tmp_path / "c.tfx", stems, tiny_weights).digest != tiny_bundle.digest
    changed = {**tiny_weights, "matrix": tiny_weights["matrix"] + 1}
    assert Bundle.create(tmp_path / "d.tfx", tiny_spec, changed).digest != tiny_bundle.digest


def test_adding_again_replaces_unless_told_not_to(tiny_bundle: Bundle) -> None:
    tiny_bundle.add("model.onnx", writes(b"one"), kind="onnx")
    with pytest.raises(OutputExists, match=r"model\.onnx.*--force"):
        tiny_bundle.add("model.onnx", writes(b"two"), kind="onnx", force=False)
    assert tiny_bundle.file("model.onnx").read_bytes() == b"one"
    tiny_bundle.add("model.onnx", writes(b"two"), kind="onnx")
    assert Bundle.open(tiny_bundle.path).file("model.onnx").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["model.onnx", "engines/deep/a.engine"])
def test_a_writer_that_fails_leaves_nothing(tiny_bundle: Bundle, name: str) -> None:
    before = (tiny_bundle.path / MANIFEST).read_bytes()

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("the exporter gave up")

    with pytest.raises(ValueError, match="gave up"):
        tiny_bundle.add(name, fails, kind="onnx")
    assert listing(tiny_bundle.path) == [MANIFEST, WEIGHTS]
    assert (tiny_bundle.path / MANIFEST).read_bytes() == before
    assert list(tiny_bundle.files) == [WEIGHTS]


def test_a_writer_that_fails_leaves_the_file_of_before(tiny_bundle: Bundle) -> None:
    tiny_bundle.add("model.onnx", writes(b"good"), kind="onnx")

    def fails(path: Path) -> None:
        path.write_bytes(b"bad")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"):
        tiny_bundle.add("model.onnx", fails, kind="onnx")
    assert Bundle.open(tiny_bundle.path).file("model.onnx").read_bytes() == b"good"
    assert listing(tiny_bundle.path) == [MANIFEST, "model.onnx", WEIGHTS]


def test_a_failing_manifest_leaves_the_old_one(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (tiny_bundle.path / MANIFEST).read_bytes()
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if MANIFEST in self.name:
            real(self, content[:40])
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left"):
        tiny_bundle.add("model.onnx", writes(b"graph"), kind="onnx")
    monkeypatch.undo()
    assert (tiny_bundle.path / MANIFEST).read_bytes() == before
    assert not [name for name in listing(tiny_bundle.path) if "partial" in name]


@pytest.mark.parametrize("name", [MANIFEST, "../escaped", "a/../../escaped", "/tmp/escaped", "", "."])
def test_names_that_leave_the_bundle_or_hit_its_manifest_are_refused(tiny_bundle: Bundle, name: str) -> None:
    before = listing(tiny_bundle.path.parent)
    with pytest.raises(UsageError, match="cannot hold"):
        tiny_bundle.add(name, writes(b"x"), kind="document")
    assert listing(tiny_bundle.path.parent) == before
    assert Bundle.open(tiny_bundle.path)


def test_a_manifest_cannot_point_outside(tiny_bundle: Bundle) -> None:
    outside = tiny_bundle.path.parent / "outside"
    outside.write_bytes(b"secret")
    manifest = json.loads((tiny_bundle.path / MANIFEST).read_text())
    manifest["files"]["../outside"] = {
        "sha256": sha256_of(outside),
        "bytes": 6,
        "kind": "onnx",
        "precision": "fp32",
        "details": {},
    }
    manifest["digest"] = bundle_module._seal(manifest)
    (tiny_bundle.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside"):
        Bundle.open(tiny_bundle.path)


def test_a_sealed_bundle_adds_to_the_users_cache(tiny_bundle: Bundle, private_cache: Path) -> None:
    sealed = seal(tiny_bundle.path)
    before = {path: path.read_bytes() for path in sealed.path.iterdir()}
    added = sealed.add("parity.json", writes(b"{}"), kind="evidence")
    assert added.is_relative_to(private_cache / "tfswa" / "bundles")
    assert sealed.digest[:16] in added.parts
    assert {path: path.read_bytes() for path in sealed.path.iterdir()} == before
    for bundle in (sealed, Bundle.open(sealed.path)):
        assert sorted(bundle.files) == [WEIGHTS, "parity.json"]
        assert bundle.file("parity.json") == added
        assert bundle.find("evidence") == "parity.json"
        assert bundle.weights()
    flip(added, 0)
    with pytest.raises(BundleError, match=r"parity\.json is damaged"):
        sealed.file("parity.json")


def test_what_is_added_to_a_sealed_bundle_belongs_to_that_model_alone(
    tmp_path: Path, tiny_bundle: Bundle, tiny_spec: ModelSpec
) -> None:
    seal(tiny_bundle.path).add("parity.json", writes(b"{}"), kind="evidence")
    other = seal(Bundle.create(tmp_path / "b.tfx", tiny_spec, {"w": np.zeros(1)}).path)
    assert list(other.files) == [WEIGHTS]


def test_a_sealed_bundles_own_files_stay(tiny_bundle: Bundle) -> None:
    sealed = seal(tiny_bundle.path)
    with pytest.raises(UsageError, match="sealed"):
        sealed.add(WEIGHTS, writes(b"x"), kind="weights")
    sealed.add("model.onnx", writes(b"x"), kind="onnx")
    with pytest.raises(OutputExists):
        sealed.add("model.onnx", writes(b"y"), kind="onnx", force=False)


ADDERS, EACH = 8, 100 if os.environ.get("TFX_LONG") else 4
ADDER = """
import sys
from pathlib import Path
from tfswa.runtime.model.bundle import Bundle
bundle, tag, each = Bundle.open(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(each):
    bundle.add(f"{tag}-{number}", tag.encode() * 5000, kind="document")
    bundle.add("engines/shared", f"{tag}-{number}".encode() * 5000, kind="engine")
"""
READER = """
import sys, threading
from pathlib import Path
from tfswa.runtime.model.bundle import Bundle
kept, rounds, seen, over = Bundle.open(Path(sys.argv[1])), 0, set(), threading.Event()
print("ready", flush=True)
threading.Thread(target=lambda: (sys.stdin.readline(), sys.stdin.read(), over.set()), daemon=True).start()
while not (over.is_set() and rounds):
    fresh = Bundle.open(Path(sys.argv[1]))
    assert seen <= set(fresh.files), seen - set(fresh.files)
    seen |= set(fresh.files)
    for bundle in (kept, fresh):
        for name in bundle.files:
            bundle.file(name)
    rounds += 1
print(rounds, flush=True)
"""


@pytest.mark.parametrize("sealed", [False, True])
def test_eight_processes_that_add_at_once_lose_nothing_and_who_reads_hears_of_no_damage(
    tiny_bundle: Bundle, sealed: bool
) -> None:
    if sealed:
        seal(tiny_bundle.path)

    def start(program: str, *given: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(tiny_bundle.path), *map(str, given)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload,no-any-return]

    reader, adders = start(READER), [start(ADDER, tag, EACH) for tag in range(ADDERS)]
    for process in (reader, *adders):
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
    for process in (reader, *adders):
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    said = [adder.communicate(timeout=600) for adder in adders]
    read = reader.communicate(timeout=600)  # which closes its input: it is over
    assert [adder.returncode for adder in adders] == [0] * ADDERS, said
    assert said == [("", "")] * ADDERS
    assert (reader.returncode, read[1]) == (0, "")
    after = Bundle.open(tiny_bundle.path)
    added = {f"{tag}-{number}" for tag in range(ADDERS) for number in range(EACH)}
    assert set(after.files) == {WEIGHTS, "engines/shared", *added}
    for name in added:
        assert after.file(name).read_bytes() == name.partition("-")[0].encode() * 5000
    lasts = {f"{tag}-{EACH - 1}".encode() * 5000 for tag in range(ADDERS)}
    assert after.file("engines/shared").read_bytes() in lasts
    assert not [name for name in listing(after.home) if "partial" in name]
    if EACH > 50:
        print(f"{len(added)} files by {ADDERS} processes, {read[0].strip()} rounds read meanwhile")


def test_threads_that_add_at_once_lose_nothing(tiny_bundle: Bundle) -> None:
    def add(tag: int) -> None:
        for number in range(5):
            tiny_bundle.add(f"{tag}-{number}", str(tag).encode(), kind="document")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    after = Bundle.open(tiny_bundle.path)
    assert len(after.files) == len(tiny_bundle.files) == 41
    for name in after.files:
        after.file(name)
    assert not [name for name in listing(after.path) if "partial" in name]


WRITER = """
import sys
from pathlib import Path
from tfswa.runtime.model.bundle import Bundle
bundle, number = Bundle.open(Path(sys.argv[1])), 0
print("begins", flush=True)
while True:
    number += 1
    bundle.add("model.onnx", bytes([number % 256]) * (1 << 16), kind="onnx", details={"number": number})
"""


def test_a_reader_beside_a_writer_is_told_of_no_damage(tiny_bundle: Bundle) -> None:
    tiny_bundle.add("model.onnx", b"first", kind="onnx")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tiny_bundle.path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begins\n"
            kept = Bundle.open(tiny_bundle.path)  # its list of files grows old
            for _ in range(150):
                kept.file("model.onnx")
                Bundle.open(tiny_bundle.path).file("model.onnx")
            assert writer.poll() is None
        finally:
            writer.kill()
    assert kept.files["model.onnx"].details["number"] > 1  # it was really replaced meanwhile


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("name", ["model.onnx", "engines/a.engine"])
def test_stopped_at_any_call_of_an_addition_a_bundle_is_sound(
    tmp_path: Path, tiny_spec: ModelSpec, name: str, stop: Stop
) -> None:
    at, stopped, found = 0, True, set()
    while stopped:
        at += 1
        path = tmp_path / f"{at}.tfx"
        Bundle.create(path, tiny_spec, {"w": np.ones(3, np.float32)}).add(name, b"old", kind="document")
        before = Bundle.open(path)
        stopped = stopped_at(
            at,
            stop,
            lambda path=path: Bundle.open(path).add(name, b"new", kind="document"),  # type: ignore[misc]
        )
        for bundle in (before, Bundle.open(path)):  # at once, no command ran between
            content = bundle.file(name).read_bytes()
            assert bundle.files[name].sha256 == hashlib.sha256(content).hexdigest()
            assert bundle.weights()
        found.add(content)
        Bundle.open(path).add("other", b"x", kind="document")  # the next run
        assert listing(path) == sorted({*Path(name).parts[:-1], name, MANIFEST, WEIGHTS, "other"})
    assert found == {b"old", b"new"}


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_stopped_at_any_call_of_a_replacement_the_bundle_is_the_old_or_the_new(
    tmp_path: Path, tiny_spec: ModelSpec, stop: Stop
) -> None:
    at, stopped, found = 0, True, set()
    old, new = ({"w": np.full(3, value, np.float32)} for value in (1, 2))
    while stopped:
        at += 1
        folder = tmp_path / str(at)
        Bundle.create(folder / "x.tfx", tiny_spec, old)
        stopped = stopped_at(
            at,
            stop,
            lambda folder=folder: Bundle.create(folder / "x.tfx", tiny_spec, new, force=True),  # type: ignore[misc]
        )
        found.add(float(Bundle.open(folder / "x.tfx").weights()["w"][0]))
        publish.sweep(folder)
        found.add(float(Bundle.open(folder / "x.tfx").weights()["w"][0]))
        assert [path.name for path in folder.iterdir()] == ["x.tfx"]
    assert found == {1.0, 2.0}


@pytest.mark.parametrize("change", ["seal", "rechunk"])
def test_a_change_of_the_manifest_keeps_what_another_process_added(tiny_bundle: Bundle, change: str) -> None:
    Bundle.open(tiny_bundle.path).add("notes", b"x", kind="document")
    if change == "seal":
        tiny_bundle.seal()
    else:
        tiny_bundle.rechunk(replace(tiny_bundle.spec.chunk, context=3), {})
    assert sorted(Bundle.open(tiny_bundle.path).files) == [WEIGHTS, "notes"]
    assert sorted(tiny_bundle.files) == [WEIGHTS, "notes"]


def test_a_graph_that_came_meanwhile_stops_a_rechunk(tiny_bundle: Bundle) -> None:
    Bundle.open(tiny_bundle.path).add("model.onnx", b"x", kind="onnx")
    with pytest.raises(UsageError, match=r"holds model\.onnx"):
        tiny_bundle.rechunk(replace(tiny_bundle.spec.chunk, context=3), {})


def test_nothing_is_added_to_what_became_another_model(tiny_bundle: Bundle, tiny_spec: ModelSpec) -> None:
    Bundle.create(tiny_bundle.path, tiny_spec, {"w": np.zeros(3, np.float32)}, force=True)
    with pytest.raises(BundleError, match="became another model"):
        tiny_bundle.add("model.onnx", b"x", kind="onnx")
    with pytest.raises(BundleError, match="became another model"):
        tiny_bundle.weights()
    assert list(Bundle.open(tiny_bundle.path).files) == [WEIGHTS]


@pytest.mark.parametrize("where", ["engines", "engines/a.engine", "model.onnx", MANIFEST])
def test_links_in_a_bundle_are_replaced_or_refused_and_never_followed(
    tiny_bundle: Bundle, tmp_path: Path, where: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"outside")
    link = tiny_bundle.path / where
    link.parent.mkdir(exist_ok=True)
    manifest = link.read_bytes() if link.exists() else b""
    link.unlink(missing_ok=True)
    if where == MANIFEST:
        (outside / "file").write_bytes(manifest)
    link.symlink_to(outside if where == "engines" else outside / "file")
    before = (outside / "file").read_bytes()
    name = "model.onnx" if where in (MANIFEST, "model.onnx") else "engines/a.engine"
    if where == "engines":
        with pytest.raises(UsageError, match="a link"):
            tiny_bundle.add(name, b"new", kind="engine")
    else:
        assert tiny_bundle.add(name, b"new", kind="engine").read_bytes() == b"new"
        assert not link.is_symlink()
    assert (outside / "file").read_bytes() == before
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_one_open_bundle_sees_what_another_adds(tiny_bundle: Bundle) -> None:
    other = Bundle.open(tiny_bundle.path)
    other.add("a", writes(b"a"), kind="document")
    tiny_bundle.add("b", writes(b"b"), kind="document")
    assert sorted(tiny_bundle.files) == ["a", "b", WEIGHTS]


def test_no_pickle_is_read_and_none_is_written(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    Bundle.open(tiny_bundle.path).weights()
    for path in tiny_bundle.path.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))
    with pytest.raises(Exception, match=r"dtype"):
        Bundle.create(tiny_bundle.path, tiny_bundle.spec, {"w": np.array([object()])}, force=True)
    assert Bundle.open(tiny_bundle.path).weights()


class TestWhatTheCacheAddsToASealedBundle:
    @pytest.fixture
    def sealed(self, tiny_bundle: Bundle) -> Bundle:
        tiny_bundle.seal()
        bundle = Bundle.open(tiny_bundle.path)
        bundle.add("model.ts", b"made", kind="torchscript", precision="fp32")
        bundle.add("note.txt", b"said", kind="document")
        assert bundle.find("torchscript") == "model.ts"
        return Bundle.open(tiny_bundle.path)

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": "tfx-bundle"}', b"\xff", b"[" * 100_000])
    def test_a_damaged_manifest_is_told_once_and_written_anew(
        self, sealed: Bundle, text: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        bundle_module._warn_once.cache_clear()
        (sealed.home / MANIFEST).write_bytes(text)
        assert set(sealed.files) == {WEIGHTS}
        assert sealed.find("torchscript") is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        sealed.weights()
        sealed.add("model.ts", b"again", kind="torchscript", precision="fp32")
        assert Bundle.open(sealed.path).file("model.ts").read_bytes() == b"again"

    def test_a_damaged_file_is_left_out_and_made_again(
        self, sealed: Bundle, caplog: pytest.LogCaptureFixture
    ) -> None:
        (sealed.home / "model.ts").write_bytes(b"mede")
        assert sealed.find("torchscript") is None
        assert "model.ts is damaged: it is left out" in caplog.text
        assert set(sealed.files) == {WEIGHTS, "note.txt"}
        sealed.add("model.ts", b"made", kind="torchscript", precision="fp32", force=False)
        assert sealed.find("torchscript") == "model.ts"

    def test_the_limit_holds_for_additions_and_the_one_in_use_is_not_taken(
        self, sealed: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = sealed.home.with_name("0123456789abcdef")
        other.mkdir()
        (other / "model.onnx").write_bytes(bytes(1000))
        os.utime(sealed.home, (1, 1))
        os.utime(other, (2, 2))
        monkeypatch.setenv("TFX_CACHE_GB", "0.0000015")  # 1,500 bytes: the manifest alone has some hundred
        sealed.add("more.txt", b"more", kind="document")
        assert not other.exists()  # though it was used later than this one, until now
        assert set(sealed.files) == {WEIGHTS, "model.ts", "note.txt", "more.txt"}

    def test_one_that_is_gone_is_not_listed(self, sealed: Bundle) -> None:
        (sealed.home / "note.txt").unlink()
        assert set(sealed.files) == {WEIGHTS, "model.ts"}
