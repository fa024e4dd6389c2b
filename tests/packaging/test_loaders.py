"""Every place that opens a file by a library that may run what is in it, or starts something: why it may.

A new place fails here until it is listed: look at what is opened first (``Model.file`` does), or say why not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "train", "export", "calibration")
LOADERS = {  # ends of dotted names
    *("jit.load", "torch.load", "export.load", "hub.load", "aoti_load_package", "AOTIModelPackageLoader"),
    *("load_library", "_load_global_deps", "pickle", "marshal", "shelve", "yaml", "dill", "joblib"),
    *("onnx.load", "onnx.load_model", "read_model", "import_model", "InferenceSession"),
    *("register_custom_ops_library", "add_extension", "deserialize_cuda_engine", "create_timing_cache"),
    *("np.load", "numpy.load", "npy.read_array", "format.read_array", "np.memmap", "allow_pickle"),
    *("load_file", "safe_open", "parser.parse"),
    *("CDLL", "dlopen", "cdll", "import_module", "__import__", "spec_from_file_location", "point.load"),
    *("exec", "eval", "runpy", "os.system", "os.popen", "os.execv", "posix_spawn"),
    *("subprocess", "ctypes", "create_subprocess_exec"),
}
LASTS = {loader.rpartition(".")[2] for loader in LOADERS}
METHODS = {"eval", "exec"}  # of anything else they are methods, and mean something else

CHECKED = "a path from Model.file: hash, trust, archive or graph looked at"
OWN = "a temporary file of this process and its children, which nobody else can enter"
NUMBERS = "numpy's format, and without pickles: its default"
OURS = "a module of tfx or a library, named in the source"
PLUG_IN = "a package that the user installed registered it"
ALLOWED = {
    "runtime/__init__.py": {"import_module": OURS},
    "runtime/cli.py": {"import_module": OURS},
    "runtime/backends/__init__.py": {"import_module": OURS},
    "runtime/backends/doctor.py": {"import_module": OURS},
    "runtime/backends/aotinductor.py": {"AOTIModelPackageLoader": CHECKED},
    "runtime/backends/openvino.py": {"read_model": CHECKED},
    "runtime/backends/ort.py": {"InferenceSession": CHECKED},
    "runtime/backends/torchscript.py": {"jit.load": CHECKED},
    "runtime/backends/trt.py": {"deserialize_cuda_engine": CHECKED, "np.load": CHECKED},
    "runtime/benchmark/bench.py": {"np.load": OWN},
    "runtime/benchmark/process.py": {"subprocess": "this Python, with tfx's own worker"},
    "runtime/benchmark/worker.py": {"np.load": OWN},
    "runtime/evaluation/signals.py": {"np.load": OWN},
    "runtime/service/workers.py": dict.fromkeys(
        ("create_subprocess_exec", "subprocess"), "this Python, with tfx's own worker"
    ),
    "runtime/backends/cuda.py": {"ctypes": "an address in memory, as an array"},
    "runtime/files/publish.py": dict.fromkeys(("CDLL", "ctypes"), "the C library that Python runs on"),
    "runtime/machine.py": {"subprocess": "nvidia-smi, with fixed words"},
    "runtime/files/signals.py": {"__import__": "Python's own, with signals held back", "point.load": PLUG_IN},
    "runtime/model/bundle.py": {"load_file": "safetensors are data; their hash is checked"},
    "runtime/model/keys.py": {"import_module": OURS},
    "train/checkpoint.py": {"torch.load": "weights_only; SHA-256 and sizes are checked"},
    "train/data/decode.py": {"np.load": NUMBERS, "npy.read_array": "a module of ours, see there"},
    "train/importers/demucs.py": {"safe_open": "safetensors are data"},
    "train/importers/published.py": {"yaml": "a safe loader that knows tuples; sizes are checked"},
    "train/importers/reading.py": {
        "torch.load": "weights_only, with stand-ins that can do nothing; sizes are checked",
        "load_file": "safetensors are data",
    },
    "train/published.py": dict.fromkeys(
        ("InferenceSession", "onnx.load"), "a path from Model.file, or a file that was looked at"
    ),
    "train/perceptual.py": {
        "jit.load": "check_network: trust and archive looked at",
        "import_module": "a module that the user names and has installed",
    },
    "train/tasks.py": dict.fromkeys(
        ("load_file", "safe_open"), "safetensors are data; hash or own digest is checked"
    ),
    "export/builder.py": {
        "deserialize_cuda_engine": "just built from a graph that was looked at",
        "create_timing_cache": "times of kernels, whose seal is checked",
        "parser.parse": "a graph from Model.file",
    },
    "export/check.py": {"onnx.load": "just written"},
    "export/engine.py": {"import_module": OURS},
    "export/instruments.py": {"onnx.load": CHECKED},
    "export/onnx.py": {"onnx.load": CHECKED},
    "export/session.py": {"InferenceSession": "a graph in memory, from a file that was looked at"},
    "calibration/calibrate.py": {"onnx.load": CHECKED},
    "calibration/corpus.py": {"format.read_array": NUMBERS},
    "calibration/cost.py": {"read_model": "a path from Model.file, or just written"},
    "calibration/loss.py": {"np.load": OWN},
    "calibration/ranges.py": {"np.load": "numpy's format without pickles, whose tag is checked"},
}


def loaders(source: str) -> Iterator[str]:
    """Loaders that a module names, be it to call or to import them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names = [ast.unparse(node)] if node.attr in LASTS else []
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names] + [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.value.value:
            names = [node.arg or ""]
        else:
            continue
        for name in names:
            for loader in LOADERS:
                if name == loader or (name.endswith(f".{loader}") and loader not in METHODS):
                    yield loader


def test_every_place_that_loads_or_starts_something_is_known() -> None:
    found = {
        str(path.relative_to(ROOT)): set(loaders(path.read_text(encoding="utf-8")))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert {name: names for name, names in found.items() if names} == {
        name: set(why) for name, why in ALLOWED.items()
    }


def test_what_would_be_a_new_place_is_seen() -> None:
    for line in (
        "import torch\nx = torch.jit.load('a')",
        "import torch\nopen_it = torch.jit.load",
        "import pickle",
        "from pickle import loads",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "from subprocess import run",
        "eval('1')",
    ):
        assert list(loaders(line)), line
    assert not list(loaders("network.eval()\nre.compile('a')\njson.loads('1')"))
    assert set(loaders("np.load('a', allow_pickle=False)")) == {"np.load"}
