"""What several test files share: a tiny contract, bundles, a tiny family, song folders.

Nothing here imports torch before a fixture that needs it is asked for, so that the tests of the runtime
run where torch is not installed.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Networks of a few thousand weights gain nothing from threads, and busy machines lose by them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# matplotlib looks through the system's fonts where it finds no cache of its own: once, not once a test.
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "tfx-tests-matplotlib"))
# What tests make is vouched for by a key of this run: fixtures of the whole session make machine code.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="tfx-tests-state-")
os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_STATE_HOME"]

import numpy as np
import pytest
import soundfile
from command_line import Done, Tfx
from numpy.typing import NDArray

from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# `nohup` and a shell's background have the tests ignore signals, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

RATE = 8000
STFT = StftSpec(n_fft=512, hop=128, sample_rate=RATE)
CHUNK = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
HYPER: dict[str, Any] = {
    "dims": [8, 16],
    "depths": [1, 1],
    "decoder_depths": [1],
    "heads": [1, 2],
    "mlp_ratio": 2.0,
    "window": 4,
    "fold": 4,
    "fold_layout": "adjacent",
    "mask": "magnitude",
    "normalization": "fixed",
    "fusion": "serial",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage is asked of the runtime, by its own quick tests: traced, Python takes twice as long."""
    for item in items:
        rooms = item.path.relative_to(Path(__file__).parent).parts
        # Tests of files fork and kill: a traced worker dies with what they end.
        if rooms[0] != "runtime" or rooms[1] == "files" or item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache for this test alone; nobody's own is ever read or written."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


@pytest.fixture
def tfx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tfx:
    """``tfx("separate", "song.wav")`` in this process."""
    from tfswa.runtime.cli import main

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tfx", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Done(int(caught.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, to tell whether anything changed."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return read


@pytest.fixture
def tiny_hyper() -> dict[str, Any]:
    """Hyper-parameters of a network of some 18 thousand weights; the caller's to change."""
    return dict(HYPER)


@pytest.fixture
def tiny_spec() -> ModelSpec:
    """F = 256, T = 16, two stems, two channels."""
    return ModelSpec(
        family="tfswa_lite", stems=("vocals", "accompaniment"), hyper=dict(HYPER), stft=STFT, chunk=CHUNK
    )


@pytest.fixture
def tiny_weights() -> dict[str, NDArray[Any]]:
    """Arrays of several shapes and types; not those of a family."""
    random = np.random.default_rng(7)
    return {
        "matrix": random.standard_normal((5, 3)).astype(np.float32),
        "transposed": random.standard_normal((4, 6)).astype(np.float32).T,
        "scalar": np.array(0.25, np.float32),
        "count": np.array(12, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_spec: ModelSpec, tiny_weights: dict[str, NDArray[Any]]) -> Bundle:
    """A bundle that needs no torch; its weights fit no network."""
    return Bundle.create(tmp_path / "tiny.tfx", tiny_spec, tiny_weights, provenance={"made": "by a test"})


@pytest.fixture
def network_bundle(tmp_path: Path) -> Bundle:
    """A bundle whose weights are a tiny network's, untrained."""
    pytest.importorskip("torch", reason="torch is not installed: networks need it")
    from tfswa.train.backend import new_bundle

    return new_bundle("tfswa_lite", tmp_path / "network.tfx", seed=3, hyper=HYPER, stft=STFT, chunk=CHUNK)


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in float16, all kinds of blocks, shifted and unshifted, untrained; read only."""
    pytest.importorskip("torch", reason="torch is not installed: networks need it")
    from tfswa.train.backend import new_bundle

    path = tmp_path_factory.mktemp("plain") / "plain.tfx"
    new_bundle("tfswa_lite", path, seed=5, hyper=HYPER, stft=STFT, chunk=CHUNK, precision="fp16")
    return path


@pytest.fixture(scope="session")
def exported_bundle(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with model.onnx and model.ts; read only."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: export to ONNX needs it")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript

    path = tmp_path_factory.mktemp("exported") / "exported.tfx"
    shutil.copytree(plain_bundle, path)
    export_onnx(open_model(path))
    export_torchscript(open_model(path))
    return path


@pytest.fixture
def exported(exported_bundle: Path, tmp_path: Path) -> BundleModel:
    """One of one's own."""
    shutil.copytree(exported_bundle, tmp_path / "mine.tfx")
    opened = open_model(tmp_path / "mine.tfx")
    assert isinstance(opened, BundleModel)
    return opened


@dataclass(frozen=True)
class _Point:
    """As much of an entry point as the lookup uses."""

    name: str
    loaded: Any = field(repr=False)

    def load(self) -> Any:
        return self.loaded


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add an entry point to a module's lookup: ``register(module, name, thing)``."""

    def add(module: Any, name: str, thing: Any) -> None:
        known = module.entry_points
        monkeypatch.setattr(
            module, "entry_points", lambda group: [*known(group=group), _Point(name, thing)], raising=True
        )

    return add


@pytest.fixture
def tiny_family(register: Callable[..., None]) -> str:
    """Name of an installed family with the tiny contract, as a third party would add one."""
    pytest.importorskip("torch", reason="torch is not installed: families need it")
    from tfswa.train import families
    from tfswa.train.families.tfswa_unet import TfswaLiteHyper, TfswaUnet

    family = families.Family("tiny", "for tests", TfswaLiteHyper, TfswaUnet, chunk=CHUNK, stft=STFT)
    register(families, "tiny", family)
    return family.name


@pytest.fixture(scope="session")
def write_song() -> Callable[..., Path]:
    """``write_song(folder, sources, rate, ending)``: one file a source, ``[C, N]`` each, 24 bits."""

    def write(
        folder: Path, sources: Mapping[str, NDArray[np.float32]], rate: int = RATE, ending: str = ".wav"
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, audio in sources.items():
            soundfile.write(folder / f"{name}{ending}", audio.T, rate, subtype="PCM_24")
        return folder

    return write


@pytest.fixture(scope="session")
def song_root(tmp_path_factory: pytest.TempPathFactory, write_song: Callable[..., Path]) -> Path:
    """Three songs of 6 s at 8 kHz: vocals are harmonic tones, the rest bursts of noise. Read only."""
    root = tmp_path_factory.mktemp("songs")
    for number, name in enumerate(("A", "B", "C")):
        random = np.random.default_rng(number)
        samples = 6 * RATE
        time = np.arange(samples) / RATE
        pitch = 180.0 * 1.25**number
        vocals = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6)) * 0.15
        bursts = random.standard_normal((3, 2, samples)) * 0.1 * (np.sin(2 * np.pi * 2 * time) > 0)
        write_song(
            root / name,
            {
                "vocals": np.stack((vocals, 0.7 * vocals)).astype(np.float32),
                "drums": bursts[0].astype(np.float32),
                "bass": bursts[1].astype(np.float32),
                "other": bursts[2].astype(np.float32),
            },
        )
    return root
