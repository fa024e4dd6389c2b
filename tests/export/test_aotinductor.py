"""Compiled code: what it gives, what it is bound to, and what happens elsewhere or without a compiler."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planes import infer_planes

torch = pytest.importorskip("torch", reason="torch is not installed: export needs it")

from tfswa.export.aotinductor import export_aotinductor  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.backends import aotinductor as backend  # noqa: E402
from tfswa.runtime.backends.aotinductor import AotInductorSession  # noqa: E402
from tfswa.runtime.errors import BackendUnavailable, BundleError, ExportError, UsageError  # noqa: E402
from tfswa.runtime.files.hashes import sha256_of  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, FileModel, open_model  # noqa: E402
from tfswa.runtime.model.spec import ChunkSpec, StftSpec  # noqa: E402
from tfswa.runtime.model.trust import trust  # noqa: E402
from tfswa.train.backend import CompiledSession, TorchSession, new_bundle  # noqa: E402

CPU = BackendOptions()
RUNTIME_GATE_DB = 90.0  # other kernels on the same weights: rounding at most


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One level, one block: compiling takes seconds. Read only."""
    hyper = {"dims": (8,), "depths": (1,), "decoder_depths": (), "heads": (1,), "window": 4, "fold": 4}
    stft = StftSpec(n_fft=128, hop=32, sample_rate=8000)
    chunk = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
    path = tmp_path_factory.mktemp("small") / "small.tfx"
    new_bundle("tfswa_lite", path, seed=5, hyper=hyper, stft=stft, chunk=chunk)
    return path


@pytest.fixture(scope="module")
def compiled_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with model.pt2; read only."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: torch compiles with it")
    path = tmp_path_factory.mktemp("compiled") / "compiled.tfx"
    export_aotinductor(open_model(small_bundle), path)
    return path


def noise(model: BundleModel | FileModel, batch: int) -> Any:
    return np.random.default_rng(batch).standard_normal(model.spec.input_shape(batch), np.float32)


def assert_equal_to_eager(session: Any, model: BundleModel | FileModel, bundle: Path) -> None:
    eager = TorchSession(open_model(bundle), CPU)
    for batch in (2, 1):
        planes = noise(model, batch)
        found, wanted = infer_planes(session, planes), infer_planes(eager, planes)
        assert found.shape == model.spec.output_shape(batch)
        value = snr_db(wanted, found)
        assert value is not None
        assert value >= RUNTIME_GATE_DB


@pytest.mark.parametrize("name", ["", "model.pt2"])
def test_a_package_gives_what_eager_gives_alone_and_in_a_bundle(compiled_bundle: Path, name: str) -> None:
    model = open_model(compiled_bundle / name)
    session = AotInductorSession(model, CPU)
    assert session.artifact[0] == "model.pt2"
    assert_equal_to_eager(session, model, compiled_bundle)


def test_torch_compile_gives_what_eager_gives(small_bundle: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: torch compiles with it")
    model = open_model(small_bundle)
    session = CompiledSession(model, CPU)
    assert session.description == f"torch {torch.__version__} compiled, fp32 on cpu"
    assert_equal_to_eager(session, model, small_bundle)


def test_torch_compile_knows_float32_alone(small_bundle: Path) -> None:
    with pytest.raises(UsageError, match="torch-compile has no precision 'bf16': choose fp32"):
        CompiledSession(open_model(small_bundle), BackendOptions(precision="bf16"))


def test_torch_compile_says_what_it_does_not_know(tmp_path: Path) -> None:
    """And blames no compiler for that."""
    model = open_model(new_bundle("open_unmix", tmp_path / "recurrent.tfx", hyper={"hidden": 16}).path)
    with pytest.raises(BackendUnavailable) as error:
        CompiledSession(model, CPU)
    assert str(error.value) == (
        f"torch {torch.__version__} cannot compile open_unmix: Attempted to wrap RNN, GRU, or LSTM; "
        "use --backend torch"
    )


@pytest.mark.parametrize(("what", "value"), [("torch", "1.0"), ("cpu", "AVX2")])
def test_code_for_another_torch_or_cpu_is_refused_with_both(
    compiled_bundle: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: str
) -> None:
    here = backend.machine(torch)
    monkeypatch.setattr(backend, "machine", lambda torch: {**here, what: value})
    with pytest.raises(BackendUnavailable, match="--format aotinductor --force") as error:
        AotInductorSession(open_model(compiled_bundle), CPU)
    assert f"compiled for torch {here['torch']}, cpu {here['cpu']}" in str(error.value)
    assert f"{what} {value}" in str(error.value)


def test_a_gpu_is_refused(compiled_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match="device cuda asked for, packages are compiled for the CPU"):
        AotInductorSession(open_model(compiled_bundle), BackendOptions(device="cuda"))


def test_a_package_that_says_nothing_or_is_damaged_is_refused(compiled_bundle: Path, tmp_path: Path) -> None:
    model = open_model(compiled_bundle / "model.pt2")
    assert isinstance(model, FileModel)
    path = tmp_path / "model.pt2"

    def trusted() -> FileModel:
        """The file as it is now, which the user trusts."""
        trust(sha256_of(path))
        return FileModel(str(path), path, model.kind, model.precision, model.spec, sha256_of(path))

    path.write_bytes(model.path.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"model\.pt2 is not a file of torch, or damaged"):
        AotInductorSession(trusted(), CPU)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"model/extra/{backend.MADE_FOR}", json.dumps(backend.machine(torch)))
    with pytest.raises(BundleError, match=r"model\.pt2 cannot be loaded by torch"):
        AotInductorSession(trusted(), CPU)


def test_without_a_compiler_one_line_says_what_it_takes(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler found\nand more lines")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(ExportError, match=r"no C\+\+ compiler found; .* apt-get install g\+\+$"):
        export_aotinductor(open_model(small_bundle), tmp_path / "new.tfx")
    assert not (tmp_path / "new.tfx").exists()
    monkeypatch.setattr(torch, "compile", lambda network, **_: fail)
    with pytest.raises(BackendUnavailable, match=r"no C\+\+ compiler found; .* use --backend torch$"):
        CompiledSession(open_model(small_bundle), CPU)
