"""What is shipped: the wheel is the tree, the import arrows hold, and ``tfx --help`` is instant."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from tfswa.runtime import cli

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]  # tfswa.train -> train
TRAINING = {"torch", "tensorboard", "onnx", "onnxscript"}
LIBRARIES = {"torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "openvino", "onnx", "onnxscript"}
LIBRARIES |= {"grpc", "tritonclient"}


def modules() -> dict[str, Path]:
    """Every module of the tree, by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = path
    return found


@dataclass(frozen=True)
class Import:
    """One import statement's target, dotted."""

    target: str
    line: int
    lazy: bool

    def of(self, *packages: str) -> bool:
        return any(self.target == package or self.target.startswith(f"{package}.") for package in packages)


def imports(path: Path) -> list[Import]:
    """All that a module imports when it runs; what only type checkers see is left out."""

    def walk(nodes: list[ast.stmt] | list[ast.AST], lazy: bool) -> Iterator[Import]:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.orelse, lazy)
            elif isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno} is relative: write it out"
                for alias in node.names:
                    yield Import(f"{node.module}.{alias.name}", node.lineno, lazy)
            else:
                inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(list(ast.iter_child_nodes(node)), inner)

    return list(walk(ast.parse(path.read_text()).body, False))


MODULES = modules()
IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def offenders(
    where: str, *targets: str, lazy_is_fine: bool = False, apart_from: tuple[str, ...] = ()
) -> list[str]:
    """Imports of ``targets`` below the package ``where``, as ``module:line target``."""
    return [
        f"{name}:{found.line} {found.target}"
        for name, all_ in IMPORTS.items()
        if (name == where or name.startswith(f"{where}.")) and not name.startswith(apart_from or ("-",))
        for found in all_
        if found.of(*targets) and not (lazy_is_fine and found.lazy)
    ]


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import a\n"
        "try:\n    import b.c\nexcept ImportError:\n    pass\n"
        "class C:\n    from d import e\n    def f(self):\n        import g\n"
    )
    found = {(one.target, one.lazy) for one in imports(path)}
    assert found == {
        ("typing.TYPE_CHECKING", False),
        ("a", False),
        ("b.c", False),
        ("d.e", False),
        ("g", True),
    }
    assert Import("torch.nn", 1, False).of("torch")
    assert not Import("torchaudio", 1, False).of("torch")


def test_the_arrows_of_the_packages() -> None:
    assert "tfswa.runtime.model.spec" in MODULES
    assert "tfswa.train.loop" in MODULES
    assert "tfswa.calibration.search" in MODULES
    assert offenders("tfswa.runtime", "tfswa.train", "tfswa.export", "tfswa.calibration") == []
    assert offenders("tfswa.train", "tfswa.export", "tfswa.calibration") == []
    assert offenders("tfswa.export", "tfswa.calibration") == []


def test_the_runtime_imports_heavy_libraries_in_functions_of_its_backends_alone() -> None:
    assert offenders("tfswa.runtime", *LIBRARIES, lazy_is_fine=True) == []
    assert offenders("tfswa.runtime", *LIBRARIES, apart_from=("tfswa.runtime.backends",)) == []
    av = offenders("tfswa.runtime", "av", lazy_is_fine=True)
    assert {name.partition(":")[0] for name in av} <= {
        "tfswa.runtime.audio.aac",
        "tfswa.runtime.audio.ffmpeg",
        "tfswa.runtime.audio.packets",
    }


def test_command_files_import_only_click_at_module_level() -> None:
    commands = [
        name for name in MODULES if name.endswith(".cli") or name.startswith("tfswa.runtime.commands.")
    ]
    assert len(commands) > 3
    limits = "tfswa.runtime.limits"
    ours = ("tfswa.runtime.errors", "tfswa.runtime.escape", "tfswa.runtime.commands", limits)
    light = (*sys.stdlib_module_names, "click", *ours)
    for name in (*commands, limits):
        heavy = [one for one in IMPORTS[name] if not one.lazy and not one.of(*light)]
        assert heavy == [], name


def test_every_package_is_listed_and_typed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert packages == set(listed)
    for name, path in MODULES.items():
        assert (path.parent / "__init__.py").is_file(), f"{name} lies in a folder without __init__.py"
    for folder in FOLDERS.values():
        assert (ROOT / folder / "py.typed").is_file()
    assert not (ROOT / "tfswa").exists()  # it would shadow the installed package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files of a wheel built from a clean copy of the tree, without a network."""
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed: it builds the wheel")
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", build],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(copy / done.stdout.split()[-1]) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_is_the_tree(wheel: set[str]) -> None:
    shipped = {name for name in wheel if ".dist-info/" not in name}
    tree = {
        f"tfswa/{folder}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder in FOLDERS.values()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert {name for name in tree if name.endswith(".py")} == {
        name for name in shipped if name.endswith(".py")
    }
    assert shipped == tree
    assert "tfswa/__init__.py" not in shipped
    assert any(name.endswith("entry_points.txt") for name in wheel)
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def declared_points() -> list[tuple[str, str, str]]:
    project = PROJECT["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    return [(group, name, value) for group, points in groups.items() for name, value in points.items()]


@pytest.mark.parametrize(("group", "name", "value"), declared_points())
def test_entry_points_resolve(group: str, name: str, value: str) -> None:
    module, _, attribute = value.partition(":")
    if module.startswith(("tfswa.train", "tfswa.export")):
        pytest.importorskip("torch", reason="torch is not installed: that entry point needs it")
    found = import_module(module)
    if attribute:  # pytest wants a module
        assert callable(getattr(found, attribute)) or attribute.isupper()
    installed = {point.name: point.value for point in entry_points(group=group)}
    assert installed.get(name) == value, "install again: pip install -e ."


def test_families_are_registered_under_their_own_names() -> None:
    pytest.importorskip("torch", reason="torch is not installed: families need it")
    for point in entry_points(group="tfswa.families"):
        assert point.load().name == point.name


HELP = """
import json, sys, time
started = time.perf_counter()
import tfswa.runtime.cli as cli
try:
    cli.tfx.main(["--help"], standalone_mode=False)
finally:
    seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    attempts = []
    for _ in range(3):  # a busy machine may be slow once
        done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stderr)
        heavy = {"numpy", "torch", "scipy", "av", "soundfile", "onnxruntime", "rich"}
        assert heavy.isdisjoint(measured["modules"])
        attempts.append(measured["seconds"])
        if attempts[-1] < 1.0:
            break
    assert min(attempts) < 1.0
    for name, (_, summary) in cli.COMMANDS.items():
        assert name in done.stdout
        assert summary.split()[0] in done.stdout


def test_module_and_command_are_one() -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tfswa.runtime", "--version"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0
    assert PROJECT["project"]["version"] in done.stdout
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_and_every_option_is_explained(name: str) -> None:
    module = cli.COMMANDS[name][0]
    assert module in MODULES, f"{name} names {module}, which is not there"
    command = getattr(import_module(module), cli.attribute(name))
    assert isinstance(command, click.Command)
    assert command.help
    assert not command.help.startswith(" ")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"tfx {name} {parameter.opts[0]} has no help"
            assert parameter.help.endswith("."), f"tfx {name} {parameter.opts[0]}: {parameter.help}"


def test_extras_bring_what_the_messages_promise() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for extra, library in (
        ("ort", "onnxruntime"),
        ("torch", "torch"),
        ("train", "torch"),
        ("train", "tensorboard"),
        ("export", "onnx"),
        ("ort-gpu", "onnxruntime-gpu"),
        ("trt", "tensorrt"),
        ("trt", "cuda-bindings"),
        ("trt-rtx", "tensorrt-rtx"),
        ("trt-rtx", "cuda-bindings"),
    ):
        assert any(need.startswith(f"{library}>=") for need in extras[extra]), extra
    base = " ".join(PROJECT["project"]["dependencies"])
    assert not any(heavy in base for heavy in TRAINING | {"onnxruntime"})


def test_av_is_loaded_for_files_that_need_it_alone() -> None:
    script = "import sys\nfrom tfswa.runtime import Separator, open_model\nassert 'av' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], timeout=600).returncode == 0


def test_the_runtime_imports_without_torch_and_onnxruntime() -> None:
    names = [name for name in MODULES if name.startswith("tfswa.runtime") and not name.endswith("__main__")]
    script = (
        "import sys\n"
        f"for name in {sorted(LIBRARIES)!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: __import__(name)\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
