"""One other byte anywhere in what tfx keeps and later believes: refused or made again, never other sound.

``TFX_LONG=1`` tries 200 places of each kind of file, and compiles a package; ``-s`` prints the counts.
OpenVINO's blob has its own test: ``tests/runtime/backends/test_openvino.py``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import certificate_of, made_song, reference_of, rounded
from system_calls import counted, die, refuse, status_of

from tfswa.runtime.backends import auto
from tfswa.runtime.errors import TfxError
from tfswa.runtime.evaluation.records import Records, SongResult, audio_sha256
from tfswa.runtime.evaluation.scores import FIGURES, Score
from tfswa.runtime.files import caches, publish, seal
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.machine import user_cache, user_state
from tfswa.runtime.model.bundle import MANIFEST, Bundle
from tfswa.runtime.model.digest import close_archive
from tfswa.runtime.model.keys import EVIDENCE
from tfswa.runtime.model.opening import METADATA, BundleModel, embed, open_model
from tfswa.runtime.model.trust import made_here
from tfswa.runtime.parity.evidence import read_evidence
from tfswa.runtime.parity.kept import ItemFigures, Kept
from tfswa.runtime.songs.finding import find_songs

LONG = bool(os.environ.get("TFX_LONG"))
PLACES = 200 if LONG else 10
Look = Callable[[], Any]  # what a command would go on with; None where it makes it again


@pytest.fixture
def flip(request: pytest.FixtureRequest) -> Callable[[Path, Look], Counter[str]]:
    """``flip(path, look)``: how often a file with another byte was refused, made again, or read as before."""

    def run(path: Path, look: Look) -> Counter[str]:
        whole, right, chance, found = path.read_bytes(), look(), np.random.default_rng(0), Counter[str]()
        assert right is not None
        assert path.read_bytes() == whole
        for place in chance.integers(0, len(whole), PLACES):
            other = bytearray(whole)
            other[place] ^= int(chance.integers(1, 256))
            path.write_bytes(other)
            value = outcome(look)
            again = not path.exists() or path.read_bytes() != other
            if isinstance(value, TfxError):
                found["refused"] += 1
            else:
                assert value == right or (value is None and again), place
                found["made again" if again else "read as before"] += 1
            path.write_bytes(whole)
        assert look() == right
        counts = ", ".join(f"{number} {what}" for what, number in sorted(found.items()))
        print(f"\n{request.node.name}: {path.name}, {len(whole)} bytes, {PLACES} places: {counts}")
        return found

    return run


def outcome(look: Look) -> Any:
    """What is believed, or the error, which is one line."""
    try:
        return look()
    except TfxError as error:
        return error if len(str(error).splitlines()) == 1 else str(error)


def all_of(found: Counter[str], what: str) -> bool:
    return found == {what: PLACES}


@pytest.fixture
def full(exported: BundleModel) -> BundleModel:
    """A bundle with something of each kind."""
    spec, bundle = exported.spec, exported.bundle
    song = made_song("song", spec, seconds=1.0)
    right = reference_of(song, spec)
    chance = np.random.default_rng(0)
    answer = io.BytesIO()
    np.save(answer, chance.standard_normal(400, np.float32))
    bundle.add("engines/a.engine", chance.bytes(5000), kind="engine", precision="fp16")
    made_here(bundle.files["engines/a.engine"].sha256)
    bundle.add("engines/a.npy", answer.getvalue(), kind="answer")
    bundle.add("calibration.json", b'{"ranges": {"conv": 1.25}}\n', kind="document")
    keep_certificate(exported, certificate_of(spec, {"a": (song, right, rounded(right))}))
    return BundleModel(str(bundle.path), Bundle.open(bundle.path))


def keep_certificate(model: BundleModel, certificate: Any) -> None:
    from tfswa.runtime.parity.evidence import store

    store(model, [certificate])


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.onnx", "model.ts", "engines/a.engine", "engines/a.npy", "calibration.json"],
)
def test_a_file_of_a_bundle(full: BundleModel, flip: Callable[..., Counter[str]], name: str) -> None:
    path = full.bundle.path / name
    assert all_of(flip(path, lambda: open_model(full.bundle.path).file(name).read_bytes()), "refused")


def test_the_evidence_of_a_bundle(full: BundleModel, flip: Callable[..., Counter[str]]) -> None:
    assert all_of(
        flip(full.bundle.path / EVIDENCE, lambda: read_evidence(open_model(full.bundle.path))), "refused"
    )


def test_the_manifest_of_a_bundle(full: BundleModel, flip: Callable[..., Counter[str]]) -> None:
    """White space may become other white space: then the manifest says what it said."""

    def look() -> Any:
        opened = Bundle.open(full.bundle.path)
        return opened.digest, opened.spec, opened.files, opened.provenance, opened.sealed

    found = flip(full.bundle.path / MANIFEST, look)
    assert found["refused"] + found["read as before"] == PLACES
    assert found["read as before"] <= PLACES // 10


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
def test_what_was_added_to_a_sealed_bundle(
    full: BundleModel, flip: Callable[..., Counter[str]], name: str
) -> None:
    sealed = Bundle.open(full.bundle.path)
    content = full.bundle.file("model.onnx").read_bytes()
    sealed.seal()
    sealed.add("added.onnx", content, kind="onnx", precision="fp16")
    path = sealed.home / ("added.onnx" if name != MANIFEST else MANIFEST)

    def look() -> bytes | None:
        opened = Bundle.open(sealed.path)
        found = opened.find("onnx", "fp16")
        if found is None:
            path.unlink(missing_ok=True)  # as whoever makes it again would
            return None
        return opened.file(found).read_bytes()

    found = flip(path, look)
    assert found["refused"] + found["made again"] + found["read as before"] == PLACES
    assert found["read as before"] <= (PLACES // 10 if name == MANIFEST else 0)


@pytest.fixture
def package(tmp_path: Path, tiny_bundle: Bundle, request: pytest.FixtureRequest) -> Path:
    """A lone ``.pt2``; in a short run an archive like one, as compiling takes a minute."""
    path = tmp_path / "lone.pt2"
    if LONG and shutil.which("g++"):
        from tfswa.export.aotinductor import export_aotinductor

        export_aotinductor(open_model(request.getfixturevalue("network_bundle").path), output=path)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lone/data/aotinductor/model/code.so", np.random.default_rng(0).bytes(4000))
        archive.writestr(
            f"lone/extra/{METADATA}.json", embed(tiny_bundle.spec, "fp32", tiny_bundle.digest, sealed=True)
        )
    close_archive(path)
    made_here(sha256_of(path))
    return path


@pytest.mark.parametrize("name", ["model.onnx", "model.ts"])
def test_a_lone_exported_file(
    full: BundleModel, tmp_path: Path, flip: Callable[..., Counter[str]], name: str
) -> None:
    path = tmp_path / f"lone{Path(name).suffix}"
    shutil.copyfile(full.bundle.path / name, path)
    assert all_of(flip(path, lambda: open_model(path).file(path.name).read_bytes()), "refused")


def test_a_lone_package(package: Path, flip: Callable[..., Counter[str]]) -> None:
    assert all_of(flip(package, lambda: open_model(package).sha256), "refused")  # type: ignore[union-attr]


def test_a_checkpoint(tmp_path: Path, flip: Callable[..., Counter[str]]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
    from tfswa.train.checkpoint import load_newest, save

    path = save(tmp_path, 5, {"weights": torch.arange(500.0), "step": 5}, keep=1)

    def look() -> Any:
        state = load_newest(tmp_path)
        return state["weights"].tolist(), state["step"]

    assert all_of(flip(path, look), "refused")


def test_decoded_audio(song_root: Path, tmp_path: Path, flip: Callable[..., Counter[str]]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: training needs it")
    from tfswa.train.data.cache import decoded
    from tfswa.train.data.decode import Recording

    recording = Recording((((song_root / "A" / "vocals.wav"), 0),), 8000, 2)

    def look() -> bytes:
        (found,) = decoded([recording], tmp_path / "cache", 1e9)
        return found.audio.tobytes() + found.levels.tobytes()

    look()
    assert all_of(flip(tmp_path / "cache" / f"{recording.key}.npy", look), "made again")


def test_a_compiled_network(flip: Callable[..., Counter[str]]) -> None:
    place = user_cache() / "onnxruntime" / "key"
    blob = np.random.default_rng(0).bytes(5000)

    def look() -> bytes:
        with caches.compiled(place):
            if not (place / "a.engine").exists():
                (place / "a.engine").write_bytes(blob)
        return (place / "a.engine").read_bytes()

    def found_again(path: Path) -> Counter[str]:
        look()
        return flip(path, look)

    found = found_again(place / "a.engine")
    assert all_of(found, "made again")
    shutil.rmtree(place)
    found_again(place / "seal")


def test_ranges_of_a_calibration(flip: Callable[..., Counter[str]]) -> None:
    path, content = user_cache() / "calibration" / "ranges" / "a.npz", io.BytesIO()
    np.savez(content, counts=np.random.default_rng(0).integers(0, 100, 500))
    caches.put(path, content.getvalue())
    assert all_of(flip(path, lambda: caches.recall(path)), "made again")


def test_losses_of_a_calibration(flip: Callable[..., Counter[str]]) -> None:
    search = pytest.importorskip("tfswa.calibration.search", reason="calibration is not installed")
    path = user_cache() / "calibration" / "plans" / "a.json"
    loss = search.Loss({"vocals": 40.0}, {"vocals": 0.01}, True)
    search._save(path, "k", {f"plan {number}": loss for number in range(20)})
    assert all_of(flip(path, lambda: search._load(path, "k") or None), "made again")


def test_the_record_of_an_evaluated_song(
    song_root: Path, tmp_path: Path, flip: Callable[..., Counter[str]]
) -> None:
    song = find_songs(song_root)[0]
    name = next(iter(song.sources))
    records = Records(tmp_path / "out", {"backend": "ort"}, ("vocals",), None, False)
    figures = dict.fromkeys(FIGURES, 7.25)
    scores = [Score("vocals", "model", figures, {figure: [1.5, None] for figure in FIGURES[:1]})]
    path = records.path(song)
    path.parent.mkdir(parents=True)
    done = SongResult(song.name, song.split, 2.5, audio_sha256(song, [name]), scores)
    path.write_text(records.text(done))

    def read() -> list[Score]:
        found = records.find(song, [name])
        assert found is not None
        return list(found.scores)

    found = flip(path, read)
    assert found["refused"] + found["read as before"] == PLACES
    assert found["read as before"] <= PLACES // 4  # white space may become other white space


def test_the_table_of_auto(flip: Callable[..., Counter[str]]) -> None:
    path = user_cache() / "auto" / "a.json"
    row = {
        "backend": "ort",
        "precision": "fp32",
        "device": "cpu",
        "versions": {"ort": "1"},
        "x_realtime": 2.5,
    }
    caches.put(path, json.dumps({"rows": [row] * 10}).encode())
    assert all_of(flip(path, lambda: auto._rows(path) or None), "made again")


def test_measurements_of_a_stopped_parity(flip: Callable[..., Counter[str]]) -> None:
    kept = Kept({"model": "a"})
    kept.add("song", ItemFigures(non_finite={"song": 3}, audio_seconds=12.5))
    (path,) = (user_cache() / "parity").iterdir()
    assert all_of(flip(path, lambda: Kept({"model": "a"}).find("song")), "made again")


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    seal._key.cache_clear()
    yield user_state()
    seal._key.cache_clear()


def test_the_key_of_this_machine(own_state: Path, flip: Callable[..., Counter[str]]) -> None:
    """Another key vouches for nothing: what it vouched for is made again, or refused."""
    path = user_cache() / "auto" / "a.json"
    caches.put(path, b"table")
    tagged = path.read_bytes()

    def look() -> bytes | None:
        seal._key.cache_clear()
        path.write_bytes(tagged)
        found = caches.recall(path)
        if found is None:
            (own_state / "key").write_bytes(b"")  # as whoever finds nothing of his own would lose it
        return found

    assert all_of(flip(own_state / "key", look), "made again")


def test_the_list_of_what_was_made_here(own_state: Path, flip: Callable[..., Counter[str]]) -> None:
    hashes = [f"{number:064x}" for number in range(5)]
    for sha256 in hashes:
        seal.vouch("made", sha256)

    def known() -> set[str]:
        others = [f"{number ^ bit:064x}" for number in range(5) for bit in (8, 16, 32)]
        assert not [one for one in others if seal.is_vouched("made", one, remembered=False)]
        return {one for one in hashes if seal.is_vouched("made", one, remembered=False)}

    def look() -> set[str] | None:
        found = known()
        if found != set(hashes):
            assert len(found) >= len(hashes) - 2  # the line, or two that became one: their files are refused
            (own_state / "vouched").unlink()
            return None
        return found

    found = flip(own_state / "vouched", look)
    assert found["made again"] + found["read as before"] == PLACES  # between two lines a byte means nothing


def test_the_config_of_a_run(song_root: Path, tmp_path: Path, flip: Callable[..., Counter[str]]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: training needs it")
    from tfswa.train.config_files import (
        RUN_CONFIG,
        find_config,
        load_config,
        load_run_config,
        run_config_text,
    )

    path = tmp_path / RUN_CONFIG
    path.write_text(run_config_text(load_config(find_config("seed")[0], [f"data.root='{song_root}'"])))
    found = flip(path, lambda: load_run_config(tmp_path))
    assert found["refused"] + found["read as before"] == PLACES
    assert found["read as before"] <= PLACES // 4  # white space may become other white space


def test_weights_of_a_pre_training(tmp_path: Path, flip: Callable[..., Counter[str]]) -> None:
    """In its metadata a byte changes nothing that is believed: weights are what their digest says."""
    torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
    from tfswa.train import tasks
    from tfswa.train.config import ModelConfig

    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(20, 40, generator=generator), "b": torch.randn((), generator=generator)}
    task = object.__new__(tasks.Reconstruction)
    task.spec = type("Spec", (), {"family_in_words": "tfswa_lite"})()
    task.save(tmp_path, weights, {"step": 3}, best=True)

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.zeros(20, 40)), torch.nn.Parameter(torch.zeros(()))

    def look() -> Any:
        network = Network()
        tasks.initialize(network, ModelConfig(family="tfswa_lite", init=str(tmp_path / tasks.PRETRAINED)))
        return {name: value.tolist() for name, value in network.state_dict().items()}

    found = flip(tmp_path / tasks.PRETRAINED, look)
    assert found["refused"] + found["read as before"] == PLACES
    assert found["read as before"] <= PLACES // 4


def test_timings_of_tensorrt(tmp_path: Path, flip: Callable[..., Counter[str]]) -> None:
    builder = pytest.importorskip("tfswa.export.builder", reason="torch is not installed: export needs it")
    path, kept = tmp_path / "timings", np.random.default_rng(0).bytes(3000)
    cache = type("Cache", (), {"serialize": lambda self: kept})()
    builder._store_timings(type("Config", (), {"get_timing_cache": lambda self: cache})(), path)
    assert all_of(flip(path, lambda: builder._timings(path)), "refused")


def test_chunks_to_calibrate_on(
    tiny_bundle: Bundle, tmp_path: Path, flip: Callable[..., Counter[str]]
) -> None:
    """Dates and the like in an archive mean nothing: what is not refused gives the same chunks."""
    corpus = pytest.importorskip("tfswa.calibration.corpus", reason="calibration is not installed")
    spec, path, chance = tiny_bundle.spec, tmp_path / "calibration.npz", np.random.default_rng(0)
    entry = {"name": "a @ 0.0 s", "stratum": "music", "stems": False}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        parts = {"calibration": [entry, entry], "held_out": [entry]}
        songs = [{"name": "a", "files": ["a.wav"], "seconds": 1.0, "sha256": "0" * 64}]
        writer = corpus.Writer(archive, spec, seed=0, found=["music"] * 3, songs=songs, parts=parts)
        for number in range(2):
            writer.calibration(number, chance.standard_normal((spec.channels, spec.chunk_samples)))
        writer.held_out(0, chance.standard_normal((spec.channels, spec.chunk_samples)).astype(np.float32), {})

    def look() -> Any:
        opened = corpus.open_corpus(path, spec)
        chunks = [*opened.calibration(), *opened.held_out()]
        said = (opened.seed, opened.strata, opened.found, opened.sources)
        return said, [(chunk.name, chunk.stratum, chunk.mixture.tobytes(), chunk.stems) for chunk in chunks]

    found = flip(path, look)
    assert found["refused"] + found["read as before"] == PLACES
    assert found["read as before"] <= PLACES // 10


def test_what_was_downloaded(flip: Callable[..., Counter[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed: importing needs it")
    from tfswa.train.importers import download
    from tfswa.train.importers.download import Download
    from tfswa.train.importers.part import PartialDownload, ServerNote

    content = np.random.default_rng(0).bytes(5000)
    wanted = Download(
        "http://nowhere.invalid/a.whl", hashlib.sha256(content).hexdigest(), len(content), "bring it"
    )

    def transfer(url: str, part: PartialDownload, **_: Any) -> None:
        part.begin(ServerNote(url))
        part.write(content)

    monkeypatch.setattr(download, "transfer", transfer)
    wanted.fetch()
    assert all_of(flip(wanted.place, lambda: wanted.fetch().read_bytes()), "made again")


@pytest.mark.parametrize("undone", [False, True])
def test_the_journal_of_a_publish_that_was_killed(tmp_path: Path, undone: bool) -> None:
    """It says everything twice: one set has all names afterwards, whichever byte is another."""
    names, chance, size = ("vocals", "drums", "other"), np.random.default_rng(0), 0
    for number in range(PLACES):
        out = tmp_path / str(number)
        out.mkdir()

        def work(out: Path = out) -> None:
            for text in ("old", "new"):
                staging = Staging({name: out / name for name in names}, force=True, source=None)
                staging.prepare(0)
                for partial in staging.partials:
                    partial.write_text(text)
                then, first = (15, refuse) if undone else (11, lambda: None)  # as in test_publish.py
                with counted(then if text == "new" else 0, die), counted(11 if text == "new" else 0, first):
                    staging.publish()

        assert status_of(work) == -9
        (left,) = out.glob(".*")
        (journal,) = (path for path in left.iterdir() if path.name in (publish.JOURNAL, publish.UNDO))
        assert (journal.name == publish.UNDO) == undone
        assert {path.read_text() for path in out.glob("[!.]*")} == {"old", "new"}
        other = bytearray(journal.read_bytes())
        size, place = len(other), int(chance.integers(len(other)))
        other[place] ^= int(chance.integers(1, 256))
        journal.write_bytes(other)
        publish.sweep(out)
        right = "old" if undone else "new"
        assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(names, right), place
    print(f"\n{'undo' if undone else 'journal'}.json, {size} bytes, {PLACES} places: {PLACES} read as before")
