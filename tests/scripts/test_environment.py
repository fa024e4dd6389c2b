"""The environment that the scripts make: it sees the tree itself, and nothing that may be thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of four packages at a path with a space and a letter beyond ASCII; linked, nothing installed."""
    root = tmp_path_factory.mktemp("ein Ordner für tfx") / "tfx"
    for folder in ("runtime", "train", "export", "calibration"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").write_text(f"NAME = '{folder}'\n")
    (root / "build").mkdir()
    (root / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "environment.sh", root / "scripts")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    script = f"set -eu; root='{root}'; . \"$root/scripts/environment.sh\"; link_source; link_source"
    subprocess.run(["bash", "-c", script], check=True)
    return root


def python(clone: Path, code: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(
        [clone / ".venv" / "bin" / "python", "-c", code],
        capture_output=True,
        text=True,
        cwd=clone.parent,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_tree_is_what_is_imported_and_build_is_not_needed(clone: Path) -> None:
    assert not (clone / "build").exists()  # what was left there would end up in a wheel
    code = "import os, tfswa.train as t; print(t.NAME, os.path.realpath(t.__file__))"
    assert python(clone, code) == f"train {(clone / 'train' / '__init__.py').resolve()}"


def test_a_change_and_a_new_file_are_seen_at_once(clone: Path) -> None:
    (clone / "export" / "fresh.py").write_text("VALUE = 3\n")
    assert python(clone, "from tfswa.export.fresh import VALUE; print(VALUE)") == "3"


def test_type_checkers_find_the_packages_as_files(clone: Path) -> None:
    lines = python(clone, "import sys; print('\\n'.join(sys.path))").splitlines()
    assert any((Path(line) / "tfswa" / "runtime" / "__init__.py").is_file() for line in lines)
