"""Seams: networks of known reach get exactly their context, and storing it never leaves a mismatch."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.cli import main
from tfswa.runtime.errors import AudioError, GateError, NonFiniteError, UsageError
from tfswa.runtime.model.bundle import WEIGHTS, Bundle
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.parity.context import store_context
from tfswa.runtime.parity.corpus import Item, songs
from tfswa.runtime.parity.reference import load_reference
from tfswa.runtime.parity.seams import LIMIT_DB, Seams, distances_to_show, measure_seams
from tfswa.runtime.songs.loading import Song
from tfswa.runtime.songs.synthetic import synthetic_song

torch = pytest.importorskip("torch", reason="torch is not installed: networks are torch's")

from tfswa.train import families  # noqa: E402
from tfswa.train.backend import new_bundle  # noqa: E402

STFT = StftSpec(n_fft=512, hop=128, sample_rate=8000)
CHUNK = ChunkSpec(frames=32, context=5, fade=2, multiple=4)
Run = Callable[..., tuple[int, str, str]]

OVERLAP = STFT.n_fft // STFT.hop - 1  # frames that a sample's neighbors reach by the transform alone


@dataclasses.dataclass(frozen=True)
class ReachHyper:
    """``kind``: delay, pointwise, gate (of the whole chunk) or broken."""

    kind: str = "delay"
    reach: int = 4


class Reach(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A network that hears ``reach`` frames to either side, or all of them."""

    def __init__(self, spec: ModelSpec, hyper: ReachHyper):
        super().__init__()
        self.hyper = hyper
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Any) -> Any:
        x = self.gain * x
        if self.hyper.kind == "delay":
            frames, reach = x.shape[2], self.hyper.reach
            padded = torch.nn.functional.pad(x, (0, 0, reach, reach))
            return torch.stack((padded[:, :, :frames], padded[:, :, 2 * reach :]), dim=1)
        if self.hyper.kind == "gate":
            x = x * x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        if self.hyper.kind == "broken":
            x = x / 0.0
        return torch.stack((x, x), dim=1)


@pytest.fixture
def reaching(tmp_path: Path, register: Callable[..., None]) -> Callable[..., BundleModel]:
    """``reaching(kind, reach)``: a model of that reach."""
    register(families, "reach", families.Family("reach", "", ReachHyper, Reach, CHUNK, STFT))

    def make(kind: str = "delay", reach: int = 4) -> BundleModel:
        path = tmp_path / f"{kind}-{reach}.tfx"
        new_bundle("reach", path, hyper={"kind": kind, "reach": reach})
        model = open_model(path)
        assert isinstance(model, BundleModel)
        return model

    return make


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(*arguments)``: exit code, stdout and stderr of ``tfx parity``."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tfx", "parity", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return (int(left.value.code or 0), *capsys.readouterr())

    return call


def measure(model: BundleModel, **options: Any) -> Seams:
    return measure_seams(model, songs(None, model.spec), **options)


def separable(model: BundleModel) -> Item:
    """A song as long as the long pass, which the network separates to 20 dB SDR."""
    random = np.random.default_rng(1)
    samples = (4 * CHUNK.frames - 1) * STFT.hop
    mixture = random.uniform(-0.5, 0.5, (2, samples)).astype(np.float32)
    stems = load_reference("torch")(model).separate_once(mixture)
    noise = 0.1 * stems.std() * random.standard_normal(stems.shape)
    truth = dict(zip(model.spec.stems, (stems + noise).astype(np.float32), strict=True))
    return Item("separable", "real", lambda: Song("separable", mixture, truth))


@pytest.mark.parametrize("reach", [1, 4, 7])
def test_a_network_of_known_reach_gets_exactly_its_context(
    reaching: Callable[..., BundleModel], reach: int
) -> None:
    model = reaching("delay", reach)
    found = measure_seams(model, [separable(model)])
    assert found.truth
    assert found.exact == reach + OVERLAP
    # What lies beyond the edge is missing altogether up to the reach; windows of the transform fade it out.
    assert found.context is not None
    assert reach <= found.context <= found.exact
    worst = [max(curve.seam_db(c) for curve in found.curves) for c in (found.context - 1, found.context)]
    assert worst[0] > LIMIT_DB >= worst[1]
    assert all(curve.middle_loss_db == pytest.approx(0.0, abs=1e-3) for curve in found.curves)
    assert measure_seams(model, [separable(model)], limit_db=1e-3).context in (found.exact, found.exact - 1)


def test_a_pointwise_network_needs_none(reaching: Callable[..., BundleModel]) -> None:
    found = measure(reaching("pointwise"))
    assert found.context == 0
    assert found.exact == OVERLAP  # the Nyquist bin, which is one stem's, is not what it was at a cut
    kept, speed = found.speed(0)
    assert kept == (32 - 1 - 2) / 31
    assert speed == (32 - 1 - 2) / (32 - 1 - 10 - 2)


def test_a_network_that_sees_all_of_a_chunk_never_equals_the_long_pass(
    reaching: Callable[..., BundleModel],
) -> None:
    found = measure(reaching("gate"), limit_db=1e-6)
    assert found.exact is None
    assert found.context is None
    with pytest.raises(GateError, match="nothing was stored"):
        store_context(reaching("delay"), found)


def test_without_true_stems_the_loss_follows_from_the_difference(
    reaching: Callable[..., BundleModel],
) -> None:
    model = reaching("delay", 3)
    song = synthetic_song(model.spec, seconds=1.0)  # shorter than the long pass: repeated
    found = measure_seams(model, [Item("bare", "real", lambda: Song("bare", song.mixture, {}))])
    assert not found.truth
    assert found.exact == 3 + OVERLAP
    for curve in found.curves:
        assert curve.sdr_db == []
        # 10 dB below what the network errs by: 10 log10(1 + 1/10)
        nearest = min(range(len(curve.snr_db)), key=lambda d: abs(curve.snr_db[d] - 20.0))
        assert curve.loss_db[nearest] == pytest.approx(
            10 * torch.log10(torch.tensor(1 + 10 ** ((10 - curve.snr_db[nearest]) / 10))).item(), abs=1e-4
        )


def test_what_cannot_be_measured_is_refused(reaching: Callable[..., BundleModel]) -> None:
    model = reaching("delay")
    for frames in (30, 34, 32, 32 * 65):
        with pytest.raises(UsageError, match="long pass"):
            measure(model, long_frames=frames)
    silent = Song("silence", synthetic_song(model.spec).mixture * 0, {})
    with pytest.raises(AudioError, match="no sound"):
        measure_seams(model, [Item("silence", "real", lambda: silent)])
    with pytest.raises(NonFiniteError):
        measure(reaching("broken"))


def test_the_context_is_stored_in_place_before_anything_was_made(
    reaching: Callable[..., BundleModel],
) -> None:
    model = reaching("delay", 2)
    before = model.bundle.digest
    found = measure(model)
    assert store_context(model, found) == model.bundle.path
    again = Bundle.open(model.bundle.path)
    assert again.spec == dataclasses.replace(
        model.spec, chunk=dataclasses.replace(CHUNK, context=found.context)
    )
    assert again.digest == model.bundle.digest != before
    assert again.provenance["seams"]["before"] == CHUNK.context
    assert again.provenance["seams"]["source"] == before
    assert again.file(WEIGHTS).is_file()


def test_where_artifacts_are_a_new_bundle_is_written_without_them(
    reaching: Callable[..., BundleModel], tmp_path: Path
) -> None:
    model = reaching("delay", 2)
    found = measure(model)
    model.bundle.add("model.onnx", b"graph", kind="onnx")
    model.bundle.add("CARD.md", b"words", kind="document")
    with pytest.raises(UsageError, match=r"model\.onnx, made for its present chunking.*-o"):
        store_context(model, found)
    made = Bundle.open(store_context(model, found, tmp_path / "new.tfx"))
    assert set(made.files) == {WEIGHTS, "CARD.md"}
    assert made.files[WEIGHTS].sha256 == model.bundle.files[WEIGHTS].sha256
    assert made.spec.chunk.context == found.context
    assert made.digest != model.bundle.digest
    assert Bundle.open(model.bundle.path).spec == model.spec


def test_the_command_prints_draws_and_stores(
    reaching: Callable[..., BundleModel], tmp_path: Path, run: Run
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pictures need it")
    path = str(reaching("delay", 2).bundle.path)
    picture = tmp_path / "seams.png"
    code, out, _ = run("seams", path, "--picture", str(picture))
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "context asked for: " in out
    assert "from 5 frames on a chunk equals the long pass" in out
    assert "--store -o NEW.tfx" in out
    assert run("seams", path, "--picture", str(picture))[0] == 2
    code, out, _ = run("seams", path, "--store", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["stored"] == path
    assert open_model(path).spec.chunk.context == printed["context"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["demo", "--seams", "--store"], "--seams is a command of its own: tfx parity seams MODEL"),
        (["--localize", "demo"], "--localize is a command of its own: tfx parity localize MODEL"),
        (["demo", "--sign=key.pem"], "--sign is a command of its own: tfx sign MODEL --key KEY"),
        (["seams", "demo", "-o", "new.tfx"], "add --store"),
        (["seams", "demo", "--store"], "is sealed"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_a_line(arguments: list[str], why: str, run: Run) -> None:
    code, _, said = run(*arguments)
    assert code == 2
    assert why in said
    assert len(said.splitlines()) == 1


def test_fewer_distances_are_shown_toward_the_middle() -> None:
    assert distances_to_show(128) == [*range(9), 12, 16, 24, 32, 48, 64, 96, 127]
    assert distances_to_show(1) == [0]
