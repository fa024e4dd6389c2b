"""tfx doctor: every conflict it knows is found, with the command that mends it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from simulated_gpu import SimulatedCuda

from tfswa.runtime.backends import doctor
from tfswa.runtime.backends.doctor import Finding, examine
from tfswa.runtime.commands.doctor import doctor as command
from tfswa.runtime.errors import TfxError

LIBRARIES = ("onnxruntime", "openvino", "torch", "tensorrt", "tensorrt_rtx", "tritonclient.grpc")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """``place(packages=..., modules=..., driver=...)``: the machine that is examined."""

    def make(
        packages: tuple[str, ...] = (), modules: dict[str, Any] | None = None, driver: str | None = None
    ) -> None:
        for name in (*LIBRARIES, "cuda.bindings.runtime"):
            monkeypatch.setitem(sys.modules, name, (modules or {}).get(name))
        monkeypatch.setattr(doctor, "_installed", lambda name: name in packages)
        path = tmp_path / "driver"
        if driver is not None:
            path.write_text(f"NVRM version: {driver}\nGCC version: 12\n")
        monkeypatch.setattr(doctor, "DRIVER", path)

    return make


def ort(*providers: str) -> SimpleNamespace:
    names = [f"{name}ExecutionProvider" for name in (*providers, "CPU")]
    return SimpleNamespace(__version__="1.31", get_available_providers=lambda: names)


def torch(cuda: str | None, devices: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="2.13",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: devices > 0,
            device_count=lambda: devices,
            get_device_capability=lambda index: (8, 9),
            get_device_name=lambda index: f"L4 number {index}",
            get_device_properties=lambda index: SimpleNamespace(total_memory=24 << 30),
        ),
    )


def about(topic: str) -> Finding:
    found = [finding for finding in examine() if finding.topic == topic]
    assert len(found) == 1, found
    return found[0]


def test_this_machine_is_fit_for_these_tests() -> None:
    """Nothing is faked: what is installed here is found, and nothing of it is broken."""
    found = examine()
    assert [finding for finding in found if finding.level == "wrong"] == []
    assert about("tfx").level == "ok"
    for name, topic in (("onnxruntime", "ort"), ("torch", "torch"), ("openvino", "openvino")):
        if doctor._installed(name):
            assert about(topic).level == "ok"
            assert name in about(topic).text


def test_every_finding_but_the_good_ones_has_a_remedy_or_needs_none() -> None:
    for finding in examine():
        assert bool(finding.remedy) == (finding.level != "ok") or finding.topic == "gpu driver"


def test_nothing_installed_is_nothing_wrong(place: Callable[..., None]) -> None:
    place()
    for topic, extra in (
        *((name, name) for name in ("ort", "openvino", "torch", "triton")),
        ("tensorrt", "trt"),
    ):
        assert about(topic).level == "missing"
        assert f"pip install 'tfswa[{extra}]'" in about(topic).remedy


def test_two_onnxruntimes_at_once(place: Callable[..., None]) -> None:
    place(("onnxruntime", "onnxruntime-gpu"), {"onnxruntime": ort()})
    wrong = [finding for finding in examine() if finding.level == "wrong"]
    assert len(wrong) == 1
    assert "overwrite each other" in wrong[0].text
    assert wrong[0].remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "torch", "tensorrt"])
def test_what_is_installed_and_cannot_be_imported(place: Callable[..., None], package: str) -> None:
    topic = "ort" if package == "onnxruntime" else package
    place((package,))
    assert about(topic).level == "wrong"
    assert "cannot be imported" in about(topic).text


def test_a_driver_that_nothing_uses(place: Callable[..., None]) -> None:
    modules = {"onnxruntime": ort(), "torch": torch(None)}
    place(("onnxruntime", "torch"), modules, driver="NVIDIA UNIX Open Kernel Module 580.1")
    assert about("gpu driver").text == "NVIDIA UNIX Open Kernel Module 580.1"
    assert "tfswa[ort-gpu]" in about("ort on cuda").remedy
    assert about("torch on cuda").level == "missing"


def test_a_driver_too_old_for_torch(place: Callable[..., None]) -> None:
    place(("torch",), {"torch": torch("13.0")}, driver="470")
    assert about("torch on cuda").level == "wrong"
    assert "CUDA 13.0, and finds no device" in about("torch on cuda").text


def test_gpus_are_listed(place: Callable[..., None]) -> None:
    place(("torch", "onnxruntime"), {"torch": torch("13.0", 2), "onnxruntime": ort("CUDA")}, driver="580")
    assert about("cuda:1").text == "L4 number 1, compute capability 8.9, 24576 MiB"
    assert not [finding for finding in examine() if "on cuda" in finding.topic]


def test_what_runs_engines(place: Callable[..., None]) -> None:
    rtx = SimpleNamespace(__version__="1.7")
    place(("tensorrt_rtx",), {"tensorrt_rtx": rtx})
    assert about("trt").level == "missing"
    assert "pip install 'tfswa[trt-rtx]'" in about("trt").remedy
    modules = {"tensorrt_rtx": rtx, "cuda.bindings.runtime": SimulatedCuda()}
    place(("tensorrt_rtx", "cuda-bindings"), modules)
    runs = "runs engines of tensorrt_rtx on NVIDIA Simulated, compute capability 9.0: fp32, fp16, bf16"
    assert about("trt").text == runs
    modules["cuda.bindings.runtime"] = SimulatedCuda(devices=0)
    place(("tensorrt_rtx", "cuda-bindings"), modules)
    assert about("trt").text == "no GPU: engines of tensorrt_rtx can be built here, not run"
    place(("tensorrt_rtx", "cuda-bindings"), modules, driver="470")
    assert (about("trt").level, about("trt").remedy) == ("wrong", "update the NVIDIA driver")


@pytest.mark.parametrize(
    ("sums", "told"),
    [("saturating", "no int8 (this CPU has no VNNI)"), ("avx512_vnni", "int8 by avx512_vnni")],
)
def test_a_cpu_without_bfloat16(
    place: Callable[..., None], monkeypatch: pytest.MonkeyPatch, sums: str, told: str
) -> None:
    monkeypatch.setattr(doctor, "int8_instructions", lambda: sums)
    core = SimpleNamespace(get_property=lambda device, name: ["FP32"] if "OPT" in name else "Some CPU")
    place(("openvino",), {"openvino": SimpleNamespace(__version__="2026")})
    monkeypatch.setattr(doctor, "process_core", lambda: core)
    assert about("openvino").text == f"openvino 2026 on Some CPU: fp32 (this CPU has no bfloat16), {told}"


def test_what_asks_a_server(place: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: {"tritonclient": "2.73"}.get(name, "1"))
    place(("tritonclient",), {"tritonclient.grpc": SimpleNamespace()})
    text = "tritonclient 2.73: asks a server, --device grpc://HOST:PORT; fp32, fp16"
    assert (about("triton").level, about("triton").text) == ("ok", text)
    place(("tritonclient",))
    assert about("triton").level == "wrong"


def test_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == "ffprobe" else f"/bin/{name}")
    assert about("ffmpeg").text.startswith("ffprobe not on PATH")
    assert about("ffmpeg").remedy == "apt-get install ffmpeg"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert about("cache").level == "wrong"
    assert "XDG_CACHE_HOME" in about("cache").remedy


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert (about("cache").level, "1.0 GB free" in about("cache").text) == ("wrong", True)


def test_the_command_fails_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    good = [Finding("ok", "ort", "fine"), Finding("missing", "torch", "not there", "pip install torch")]
    monkeypatch.setattr(doctor, "examine", lambda: good)
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    lines = ["ok  ort    fine", "--  torch  not there", "           -> pip install torch"]
    assert result.stdout.splitlines() == lines
    monkeypatch.setattr(doctor, "examine", lambda: [*good, Finding("wrong", "cache", "full", "rm")])
    result = CliRunner().invoke(command, [])
    assert isinstance(result.exception, TfxError)
    assert str(result.exception) == "1 of 3 findings are wrong (cache): see above"


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(
    place: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = SimpleNamespace(__version__="1")  # loads, and has nothing that a torch has
    place(modules={"torch": broken, "onnxruntime": ort()})
    found = about("torch")
    assert found.level == "wrong"
    assert "cannot be examined: " in found.text
    assert about("ort").level == "ok"


def test_what_other_packages_bring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "house_brand.py").write_text("BACKEND = object()\n")
    info = tmp_path / "house_brand-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: house-brand\nVersion: 1.2\n")
    points = "[tfswa.backends]\ngood = house_brand:BACKEND\nbroken = house_brand:NOTHING\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    found = [finding for finding in examine() if finding.topic == "plug-in"]
    assert [(finding.level, finding.text.partition(":")[0]) for finding in found] == [
        ("wrong", "backend broken of house-brand 1.2 cannot be loaded"),
        ("ok", "backend good of house-brand 1.2"),
    ]
    assert found[0].remedy == "mend house-brand, or pip uninstall it"
