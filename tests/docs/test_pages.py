"""Every command and every Python block of README and of the pages, run as printed, in the order printed.

A page is run in a fresh folder, with a home and caches of its own. A block is named by its first line: it is
run, or it is listed below with what it needs. ``TFX_LONG=1`` runs the blocks of ``LONG`` as well.
The pages of ``docs/measured`` are written by scripts, after runs of minutes to days: they are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
OWN_ENVIRONMENT = "needs an environment that it may change: scripts/first_path makes one"
CANNOT_RUN = {
    "README.md": {
        "git clone <this repository> tfx && cd tfx": "needs an address; tests/scripts has the quickstart",
        "pip install -c constraints.txt -e '.[train,export]'": OWN_ENVIRONMENT,
        "tfx import kim_vocals.ckpt --config kim_vocals.yaml": "needs files; tests/train has its own",
    },
    "docs/adding-a-backend.md": {"cp -r examples/my_backend mine": OWN_ENVIRONMENT},
    "docs/adding-a-family.md": {"cp -r examples/my_family mine": OWN_ENVIRONMENT},
    "docs/build-engine.md": {
        "pip install '.[export,trt-rtx]'": OWN_ENVIRONMENT,
        "tfx separate song.wav -m mine.tfx --backend trt --precision fp16": "needs a GPU",
    },
    "docs/data.md": {"tfx data musdb --download": "needs the internet"},
    "docs/demo-data.md": {
        "scripts/make_demo_data ~/demo-data --shared ../recorded": "needs hours, packages of Debian",
        "scripts/train_demo --config demo-mixed --data ~/demo-data -o ~/runs/demo-mixed": "needs days",
    },
    "docs/deploying.md": {
        'docker run --rm -p 8001:8001 -v "$PWD/repository:/models:ro" nvcr.io/nvidia/tritonserver:YY.MM-py3 '
        "tritonserver --model-repository=/models": "needs a container",
        "tfx separate songs/one/mixture.wav -m demo --backend triton --device grpc://localhost:8001 "
        "-o stems": "needs Triton; tests/runtime/backends has it with a small server",
    },
    "docs/families.md": {
        "tfx train study data.root=/data/musdb18hq -o runs/tfc_tdf": "needs MUSDB18-HQ, days",
        "tfx train tfswa_resunet data.root=/data/musdb18hq -o runs/vocals": "needs MUSDB18-HQ, days",
        "tfx train moises_light data.root=/data/musdb18hq -o runs/light": "needs MUSDB18-HQ, days",
        "tfx import umxhq": "needs the internet; tests/train has it with weights of its own",
    },
    "docs/import.md": {
        "tfx import kim-vocals": "needs the internet: 913 MB; tests/train has it with a small file",
        "tfx import vocals.ckpt --config vocals.yaml": "needs these files; tests/train has it with its own",
        "tfx import UVR-MDX-NET-Voc_FT.onnx": "needs that file; tests/train has it with graphs of its own",
    },
    "docs/results.md": {
        "tfx export demo --format torchscript": "needs an hour",
        "for format in torchscript aotinductor; do tfx export demo --format $format; done": "needs hours",
    },
    "docs/train.md": {"tfx train seed data.root=/data/musdb18hq -o runs/seed": "needs MUSDB18-HQ, days"},
    "docs/trust.md": {"TFX_LONG=1 python -m pytest -n0 -s \\": "needs minutes, and is a test"},
}
TINY = (
    "tfx new tfswa_lite -o mine.tfx --hyper 'dims=[16,16]' --hyper 'depths=[1,1]' "
    "--hyper 'decoder_depths=[1]' --hyper 'heads=[1,1]' --hyper fold=32"
)
# Run with TFX_LONG=1 alone: each of the others takes less than 50 s of one core.
LONG = {
    "docs/bench.md": ("tfx bench demo --auto",),
    "docs/build-engine.md": (TINY,),
    "docs/calibrate.md": (TINY,),
    "docs/export.md": ("tfx export mine.tfx -o mine.onnx",),
    "docs/parity.md": ("pytest -p tfswa.runtime.pytest_plugin --tfx-bundle mine.tfx --tfx-backend ort",),
    "docs/trust.md": ("openssl genpkey -algorithm ed25519 -out key.pem",),
}
LIBRARIES = {
    "docs/bench.md": "openvino",
    "docs/build-engine.md": "tensorrt_rtx",
    "docs/trust.md": "cryptography",
}
LONG_RUN = os.environ.get("TFX_LONG") == "1"
# Of a block; it ends what hangs, and a machine ten times slower than this one is no fault.
HANGS_S = 3600 if LONG_RUN else 600
FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^(?:\$ |(?:tfx|pip|python|pytest|scripts/\w+|docker|git|cp|cat) )", re.M)


@dataclass(frozen=True)
class Block:
    kind: str  # "python", "toml", "text" for what is shown, "" for commands
    text: str

    @property
    def name(self) -> str:
        return re.sub(r" +#.*", "", self.text.splitlines()[0])


def blocks_of(text: str) -> list[Block]:
    """Blocks of a page, in its order; what would be run by a reader and not by this test is refused."""
    found = [Block(match["kind"], match["text"]) for match in FENCE.finditer(text)]
    for block in found:
        assert block.kind in ("", "python", "toml", "text"), f"a block of another kind: {block.kind}"
        assert block.kind != "text" or not COMMAND.search(block.text), f"commands in text:\n{block.text}"
    assert not re.search(rf"^ {{4,}}{COMMAND.pattern[1:]}", FENCE.sub("", text), re.M), (
        "commands without a fence"
    )
    return [block for block in found if block.kind != "text"]


def blocks(page: str) -> list[Block]:
    return blocks_of((ROOT / page).read_text(encoding="utf-8"))


def install_template(name: str, site: Path) -> None:
    """What pip would write of a package in examples."""
    source = ROOT / "examples" / name
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    info = site / f"{name}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    shutil.copy(source / f"{name}.py", site)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A newcomer's: these programs on the path, the templates installed, nothing cached."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, line in (
        ("python", '"$@"'),
        ("pytest", '-m pytest "$@"'),
        ("tfx", '-m tfswa.runtime "$@"'),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line}\n')
        (programs / name).chmod(0o755)
    site = tmp_path / "site"
    for name in ("my_family", "my_backend"):
        install_template(name, site)
    own = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG", "STATE", "DATA")}
    return {
        **os.environ,
        **own,
        "HOME": str(tmp_path),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "COLUMNS": "200",
    }


def is_run(page: str, block: Block) -> bool:
    if block.name in CANNOT_RUN.get(page, {}):
        return False
    return LONG_RUN or block.name not in LONG.get(page, ())


def run_block(page: str, block: Block, folder: Path, environment: dict[str, str]) -> None:
    if block.kind == "toml":
        tomllib.loads(block.text)
        return
    done = subprocess.run(
        ["python", "-c", block.text] if block.kind else ["bash", "-euo", "pipefail", "-c", block.text],
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
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_a_page_works_as_it_is_printed(page: str, tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: the pages train and export")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: the pages export")
    if page in LIBRARIES:
        pytest.importorskip(LIBRARIES[page], reason=f"{LIBRARIES[page]} is not installed: {page} needs it")
    folder = tmp_path / "a fresh folder"
    shutil.copytree(ROOT / "examples", folder / "examples")
    for block in blocks(page):
        if is_run(page, block):
            run_block(page, block, folder, environment)


def test_what_is_listed_is_there_and_says_what_it_needs() -> None:
    for listed in (CANNOT_RUN, LONG):
        for page, names in listed.items():
            assert set(names) <= {block.name for block in blocks(page)}, page
    assert all(why.startswith("needs ") for names in CANNOT_RUN.values() for why in names.values())


@pytest.mark.parametrize(
    "text",
    [
        "```sh\ntfx doctor\n```\n",
        "```text\ntfx doctor\n```\n",
        "so:\n\n    tfx doctor\n",
        "```text\n$ ls\n```\n",
    ],
)
def test_commands_that_would_not_be_run_are_refused(text: str) -> None:
    with pytest.raises(AssertionError):
        blocks_of(text)


@pytest.mark.parametrize(
    ("kind", "text"), [("", "false | true\n"), ("", "cat nowhere.wav\n"), ("python", "undefined\n")]
)
def test_a_block_that_fails_is_noticed(
    kind: str, text: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(AssertionError, match="a page"):
        run_block("a page", Block(kind, text), tmp_path, environment)


def test_readme_is_short_and_shows_a_small_picture() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert (ROOT / "docs" / "quickstart.png").stat().st_size < 150_000


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_every_page_is_reachable_from_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(PAGES[1:]) <= set(re.findall(r"\]\(([^)#\s]+)", text))
