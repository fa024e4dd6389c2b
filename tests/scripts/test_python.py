"""Scripts that are written in Python say in one line what their environment lacks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NEEDED = {  # script: the modules that its line `run SCRIPT MODULE... --` asks for
    path.name: found[1].split()
    for path in sorted(SCRIPTS.iterdir())
    if path.is_file()
    and (found := re.search(rf"^run {path.name}((?: \w+)*) --", path.read_text(), re.MULTILINE))
}


def imported(name: str) -> set[str]:
    """Top modules that a script imports as it starts, those of scripts that it imports included."""
    found: set[str] = set()
    for node in ast.parse((SCRIPTS / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    own = {module for module in found if (SCRIPTS / f"{module}.py").exists()}
    return (found - own).union(*map(imported, own)) - set(sys.stdlib_module_names)


def bare(folder: Path) -> Path:
    """A Python without any installed package."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S -E \"$@\"\n")
    python.chmod(0o755)
    return python


def run(name: str, python: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / name, "--help"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
    )


def test_all_of_them_are_run_that_way() -> None:
    through = {path.name for path in SCRIPTS.iterdir() if path.is_file() and "python.sh" in path.read_text()}
    assert set(NEEDED) == through - {"python.sh"}
    assert {"recipes", "int8", "demo_model", "bench", "house"} <= set(NEEDED)


@pytest.mark.parametrize("name", NEEDED)
def test_what_it_imports_is_asked_for(name: str) -> None:
    assert imported(name) <= set(NEEDED[name])


@pytest.mark.parametrize("name", [name for name, modules in NEEDED.items() if modules])
def test_a_module_that_is_missing(name: str, tmp_path: Path) -> None:
    done = run(name, bare(tmp_path))
    missing = ", ".join(NEEDED[name])
    assert done.stderr == f"{name} needs {missing}: scripts/test makes an environment that has all\n"
    assert (done.returncode, done.stdout) == (4, "")


@pytest.mark.parametrize("name", NEEDED)
def test_no_environment(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path / "none")
    assert (
        done.stderr
        == f"{name}: {tmp_path}/none is not there: scripts/test makes an environment that has all\n"
    )
    assert (done.returncode, done.stdout) == (4, "")


@pytest.mark.parametrize("name", [name for name, modules in NEEDED.items() if not modules])
def test_what_needs_nothing_runs_anywhere(name: str, tmp_path: Path) -> None:
    done = run(name, bare(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
