"""Every command and every Python block of README and of the pages, run as printed, in the order printed.

A page is run in a fresh folder. A block under the comment ``<!-- not run: WHY -->`` is left out, and counted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("data", "doctor", "python", "deploying", "export")))
LONG = tuple(
    f"docs/{name}.md" for name in ("train", "adding-a-family", "bench", "build-engine", "import", "results")
)
NOT_RUN = {
    "README.md": 2,
    "docs/data.md": 1,
    "docs/export.md": 1,
    "docs/train.md": 1,
    "docs/adding-a-family.md": 1,
    "docs/bench.md": 1,
    "docs/build-engine.md": 1,
    "docs/import.md": 1,
    "docs/results.md": 2,
}
HANGS_S = 600  # of a block; it ends what hangs, and a machine ten times slower than this one is no fault
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    kind: str  # "python", or "" for commands
    text: str
    why: str  # not to run it; empty for one that is run


def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    every = [Block(match["kind"], match["text"], match["why"] or "") for match in found]
    assert {block.kind for block in every} <= {"", "python", "text"}
    return [block for block in every if block.kind != "text"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A fresh folder's: ``tfx`` and ``python`` on the path, the template family installed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, line in (("python", '"$@"'), ("tfx", '-m tfswa.runtime "$@"')):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line}\n')
        (programs / name).chmod(0o755)
    site = tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "my_family", site)
    info = site / "my_family-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: my-family\nVersion: 0.1.0\n")
    points = re.search(r'^\[project\.entry-points\."tfswa\.families"\]\n(.*?)$', _template(), re.M)
    assert points is not None
    (info / "entry_points.txt").write_text("[tfswa.families]\n" + points[1].replace('"', "") + "\n")
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "TFX_SOURCE": str(ROOT),
        "COLUMNS": "200",
    }


def _template() -> str:
    return (ROOT / "examples" / "my_family" / "pyproject.toml").read_text()


def run_page(page: str, folder: Path, environment: dict[str, str]) -> None:
    for block in blocks(page):
        if block.why:
            continue
        command = ["python", "-c", block.text] if block.kind else ["bash", "-euc", block.text]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=HANGS_S,
        )
        assert done.returncode == 0, f"{page}\n{block.text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, *LONG])
def test_a_page_works_as_it_is_printed(page: str, tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: the pages train and export")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: the pages export")
    if all(block.why for block in blocks(page)):
        pytest.skip(f"{page}: no block of it is run, {len(blocks(page))} are counted")
    folder = tmp_path / "a fresh folder"
    folder.mkdir()
    run_page(page, folder, environment)


def test_blocks_that_are_not_run_are_counted() -> None:
    found = {page: sum(bool(block.why) for block in blocks(page)) for page in (*PAGES, *LONG)}
    assert {page: count for page, count in found.items() if count} == NOT_RUN


def test_readme_is_short_and_shows_a_small_picture() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert (ROOT / "docs" / "quickstart.png").stat().st_size < 150_000


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_every_page_is_reachable_from_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#\s]+)", text))
