"""What is installed here, what each backend can do with it, and what stands in its way.

Every check is a function that yields findings; one that fails has found something too.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tfswa.runtime.backends.cuda import DRIVER, Device
from tfswa.runtime.backends.openvino import process_core
from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.files import caches
from tfswa.runtime.files.own_folders import link_in
from tfswa.runtime.files.signals import held_back, load_point
from tfswa.runtime.files.sweeping import last_swept
from tfswa.runtime.machine import cores, int8_instructions, user_cache
from tfswa.runtime.plugins import entry_points

Level = Literal["ok", "missing", "wrong"]

SWEPT_NAMED = 5  # of what was removed
GROUPS = {"tfswa.backends": "backend", "tfswa.families": "family", "tfswa.references": "reference"}
LOW_DISK_BYTES = 2 << 30  # decoded audio and engines of one model fill that soon


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ``ok``; ``missing``, something that is optional; ``wrong``, something that will fail.
        topic: what it is about.
        text: what was found.
        remedy: the command that mends it; empty where there is nothing to mend.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Run every check, in the order in which a user would ask."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _system,
        _onnxruntime,
        _openvino,
        _torch,
        _tensorrt,
        _triton,
        _extras,
        _plug_ins,
        _programs,
        _cache,
        _killed_runs,
    )
    return [finding for check in checks for finding in _run(check)]


def _run(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; one that fails is a finding itself."""
    try:
        yield from check()
    except Exception as error:  # a library that is half installed fails in any way it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        yield Finding("wrong", check.__name__.strip("_"), f"cannot be examined: {reason}", "install it again")


def _system() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}, {cores()} cores"
    yield Finding("ok", "system", f"Python {platform.python_version()} on {system}")
    yield Finding("ok", "tfx", f"{version('tfswa')} in {Path(__file__).parents[1]}")
    if DRIVER.exists():
        yield Finding("ok", "gpu driver", DRIVER.read_text().splitlines()[0].removeprefix("NVRM version: "))
    else:
        yield Finding("missing", "gpu driver", "no NVIDIA driver: backends run on the CPU")


def _onnxruntime() -> Iterator[Finding]:
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(found) == 2:
        yield Finding(
            "wrong",
            "ort",
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'tfswa[ort]'  # or 'tfswa[ort-gpu]'",
        )
    library, problem = _load("onnxruntime")
    if library is None:
        yield _absent("ort", "onnxruntime", problem, "pip install 'tfswa[ort]'")
        return
    providers = [name.removesuffix("ExecutionProvider") for name in library.get_available_providers()]
    providers = [name for name in providers if name != "Azure"]  # models on a server: nothing that tfx runs
    yield Finding("ok", "ort", f"onnxruntime {library.__version__}: {', '.join(providers)}; fp32, fp16")
    if DRIVER.exists() and "CUDA" not in providers:
        yield Finding(
            "missing",
            "ort on cuda",
            "there is an NVIDIA driver, and this onnxruntime has no CUDA provider",
            "pip uninstall -y onnxruntime && pip install 'tfswa[ort-gpu]'",
        )


def _openvino() -> Iterator[Finding]:
    library, problem = _load("openvino")
    if library is None:
        yield _absent("openvino", "openvino", problem, "pip install 'tfswa[openvino]'")
        return
    core = process_core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = "fp32, bf16" if "BF16" in able else "fp32 (this CPU has no bfloat16)"
    sums = int8_instructions()
    precisions += ", no int8 (this CPU has no VNNI)" if sums == "saturating" else f", int8 by {sums}"
    name = core.get_property("CPU", "FULL_DEVICE_NAME")
    yield Finding("ok", "openvino", f"openvino {library.__version__.split('-')[0]} on {name}: {precisions}")


def _torch() -> Iterator[Finding]:
    torch, problem = _load("torch")
    if torch is None:
        yield _absent("torch", "torch", problem, "pip install 'tfswa[torch]'")
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
    runs = "torch, torchscript"
    if shutil.which("g++"):
        runs += ", torch-compile, aotinductor"
    else:
        text = "no g++ on PATH: torch-compile and tfx export --format aotinductor need it"
        yield Finding("missing", "compiler", text, "apt-get install g++")
    yield Finding("ok", "torch", f"torch {torch.__version__}, {built}: {runs}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
            size = f"{torch.cuda.get_device_properties(index).total_memory >> 20} MiB"
            text = f"{torch.cuda.get_device_name(index)}, compute capability {capability}, {size}"
            yield Finding("ok", f"cuda:{index}", text)
    elif DRIVER.exists() and torch.version.cuda:
        yield Finding(
            "wrong",
            "torch on cuda",
            f"torch is built for CUDA {torch.version.cuda}, and finds no device behind the driver",
            "update the NVIDIA driver, or install a torch for its CUDA: https://pytorch.org/get-started",
        )
    elif DRIVER.exists():
        yield Finding(
            "missing",
            "torch on cuda",
            "there is an NVIDIA driver, and torch is built for the CPU alone",
            "pip install --force-reinstall torch, from an index with CUDA builds",
        )


def _tensorrt() -> Iterator[Finding]:
    found = []
    for name, extra in (("tensorrt", "trt"), ("tensorrt_rtx", "trt-rtx")):
        remedy = f"pip install 'tfswa[{extra}]'"
        library, problem = _load(name)
        if library is not None:
            found.append(name)
            yield Finding("ok", name, f"{name} {library.__version__}: builds engines")
        elif _installed(name):
            yield Finding("wrong", name, f"installed, and cannot be imported: {problem}", remedy)
        else:
            yield Finding("missing", name, "not installed: no engines of this flavor", remedy)
    if found:
        yield _trt(" and ".join(found))


def _trt(libraries: str) -> Finding:
    """Whether the engines of these libraries can be run here."""
    library, problem = _load("cuda.bindings.runtime")
    if library is None:
        return _absent("trt", "cuda-bindings", problem, "pip install 'tfswa[trt-rtx]'")
    try:
        device = Device(0)
    except BackendUnavailable as error:
        if DRIVER.exists():
            return Finding("wrong", "trt", str(error), "update the NVIDIA driver")
        return Finding("ok", "trt", f"no GPU: engines of {libraries} can be built here, not run")
    gpu = f"{device.name}, compute capability {device.capability}"
    return Finding("ok", "trt", f"runs engines of {libraries} on {gpu}: fp32, fp16, bf16")


def _triton() -> Iterator[Finding]:
    """What asks a server; which one, is said with ``--device``."""
    library, problem = _load("tritonclient.grpc")
    if library is None:
        yield _absent("triton", "tritonclient", problem, "pip install 'tfswa[triton]'")
        return
    text = f"tritonclient {version('tritonclient')}: asks a server, --device grpc://HOST:PORT; fp32, fp16"
    yield Finding("ok", "triton", text)


def _extras() -> Iterator[Finding]:
    for topic, packages, extra in (
        ("export", ("onnx", "onnxscript"), "export"),
        ("train", ("lightning_fabric", "tensorboard", "python_stretch"), "train"),
        ("evaluate --bsseval museval", ("museval",), "eval"),
        ("pictures", ("matplotlib",), "plots"),
    ):
        absent = [name for name in packages if not _findable(name)]
        if absent:
            text, remedy = f"{', '.join(absent)} not installed", f"pip install 'tfswa[{extra}]'"
            yield Finding("missing", topic, text, remedy)
        else:
            yield Finding("ok", topic, ", ".join(packages))


def _plug_ins() -> Iterator[Finding]:
    """What other packages bring."""
    for group, kind in GROUPS.items():
        for point in sorted(entry_points(group=group), key=lambda point: point.name):
            if point.dist is None or point.dist.name == "tfswa":
                continue
            origin = f"{kind} {point.name} of {point.dist.name} {point.dist.version}"
            try:
                load_point(point)
            except Exception as error:  # the code of others fails in any way it likes
                reason = " ".join(str(error).split()) or type(error).__name__
                remedy = f"mend {point.dist.name}, or pip uninstall it"
                yield Finding("wrong", "plug-in", f"{origin} cannot be loaded: {reason}", remedy)
            else:
                yield Finding("ok", "plug-in", origin)


def _programs() -> Iterator[Finding]:
    absent = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if absent:
        yield Finding(
            "missing",
            "ffmpeg",
            f"{' and '.join(absent)} not on PATH: museval and musdb need both, nothing else does",
            "apt-get install ffmpeg",
        )
    else:
        yield Finding("ok", "ffmpeg", str(shutil.which("ffmpeg")))


def _killed_runs() -> Iterator[Finding]:
    """What this command removed when it began, as every command does."""
    swept = last_swept()
    more = f" and {len(swept) - SWEPT_NAMED} more" if len(swept) > SWEPT_NAMED else ""
    removed = ", ".join(map(str, swept[:SWEPT_NAMED]))
    yield Finding("ok", "killed runs", f"removed {removed}{more}" if swept else "left nothing behind")


def _cache() -> Iterator[Finding]:
    place = user_cache()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{place}, {free / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK) or not there.is_dir():
        remedy = "set XDG_CACHE_HOME to a folder that can be written"
        yield Finding("wrong", "cache", f"{place} cannot be written", remedy)
    elif free < LOW_DISK_BYTES:
        yield Finding("wrong", "cache", text, "free some space, or set XDG_CACHE_HOME to another disk")
    else:
        yield Finding("ok", "cache", text)
    sizes = {kind: sum(entry.bytes for entry in caches.entries(kind)) for kind in caches.ALL}
    held = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in sizes.items() if size) or "nothing"
    total, limit = sum(sizes[kind] for kind in caches.KINDS), caches.limit_bytes()
    for problem in dict.fromkeys(filter(None, (link_in(place / kind) for kind in caches.ALL))):
        yield Finding("wrong", "cache link", f"what is kept there is not used: {problem}")
    text = f"{held}; {total / 1e9:.2f} GB of the {limit / 1e9:g} GB that {caches.LIMIT_VARIABLE} allows"
    yield Finding("ok", "cache holds", text, "tfx doctor --clear-cache" if total > limit else "")


def _load(name: str) -> tuple[Any, str]:
    """A library, or None and the reason."""
    try:
        with held_back():
            return import_module(name), ""
    except Exception as error:  # a library that is half installed fails in any way it likes
        return None, " ".join(str(error).split()) or type(error).__name__


def _absent(topic: str, package: str, problem: str, remedy: str) -> Finding:
    if _installed(package):
        return Finding("wrong", topic, f"{package} is installed, and cannot be imported: {problem}", remedy)
    return Finding("missing", topic, f"{package} is not installed", remedy)


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _findable(name: str) -> bool:
    return find_spec(name) is not None
