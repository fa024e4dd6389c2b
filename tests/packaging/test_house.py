"""The source keeps its shape: rooms, imports, names, the length of functions, spelling. See scripts/house."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # the scripts are no package

from house import DOORS, LONG, ORDER, House  # noqa: E402

BRITISH = re.compile(
    r"(?:characteri|digiti|equali|finali|generali|initiali|locali|maximi|memori|minimi|normali|optimi|organi|penali|"
    r"quanti|randomi|recogni|seriali|speciali|standardi|summari|synchroni|utili|visuali)s(?:e[drs]?\b|ing|ation|able)"
    r"|(?:cancel|label|level|model|signal|travel)l(?:ed|ing)|(?:burn|learn|spel)t\b"
    r"|analyse|artefact|behaviour|catalogue|centr(?:e|ing)|colour|defence|favour|flavour|grey|honour|judgement|licence"
    r"|metres|neighbour|whilst",
    re.IGNORECASE,
)
KEPT = {  # British words that stay
    "CancelledError",  # of asyncio
    "runtime/model/spec.py: weights_licence",  # a key of manifests of version 1
    "tests/runtime/model/test_spec.py: weights_licence",
    "train/families/tfswa_unet.py: normalisation",  # a hyper-parameter that older bundles hold
    "tests/train/test_families.py: normalisation",
    "runtime/backends/__init__.py: quantised",  # a slip of the pen that is told what was meant
}
NAMING_FAMILIES = {
    "runtime/commands/examples.py": "commands as they are typed",
    "scripts/bench.py": "the host's share is measured beside the default network",
    "scripts/bench_training.py": "the two networks whose steps are timed where none is named",
    "scripts/peer_side.py": "the networks of others' packages",
    "scripts/peers.py": "the networks of others' packages",
    "scripts/recipes.py": "recipes are tried on the small network",
    "train/config.py": "the default of model.family",
    "train/importers/bandit.py": "the family that a published file is of",
    "train/importers/cli.py": "tfx import spleeter",
    "train/importers/demucs.py": "a class of the package that files name",
    "train/importers/htdemucs.py": "the family that a published file is of",
    "train/importers/mdx23c.py": "the family that a published file is of",
    "train/importers/moises_light.py": "the family that a published file is of",
    "train/importers/open_unmix.py": "the family that a published file is of",
    "train/importers/roformer.py": "the family that a published file is of",
    "train/importers/scnet.py": "the family that a published file is of",
    "train/importers/spleeter.py": "tfx import spleeter",
}
SPELLED = {".py", ".md", ".toml", ".css", ".js", ".html", ".sh"}
OTHERS = {"CHANGELOG.md"}


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def checkout(path: Path, **modules: str) -> House:
    """A house of these modules of runtime; two underscores are a folder."""
    for name, text in modules.items():
        place = path / "runtime" / f"{name.replace('__', '/')}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return House(path)


def test_every_room_of_runtime_has_its_place_in_the_order(house: House) -> None:
    assert {house.room(name) for name in house.files if name.startswith("tfswa.runtime")} == set(ORDER)
    assert set(DOORS) <= set(house.files)


def test_no_module_imports_from_a_room_above_its_own(house: House) -> None:
    assert house.arrows_up() == []


def test_no_module_reaches_itself_by_its_imports_not_even_by_those_in_functions(house: House) -> None:
    assert house.circles() == []


def test_no_public_name_is_defined_twice(house: House) -> None:
    assert house.twins() == {}


def test_no_function_is_long(house: House) -> None:
    assert house.long_functions() == []


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    later = "def use():\n    from tfswa.runtime.stream.one import thing\n"
    long = "def long():\n" + "    pass\n" * LONG
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tfswa.runtime.stream import one\n"
    made = checkout(
        tmp_path,
        files__two=later,
        files__types=types,
        stream__one=f"import tfswa.runtime.files.two\n\ndef thing(): ...\n\n{long}",
        stream__other="class thing: ...\n",
    )
    assert made.arrows_up() == ["tfswa.runtime.files.two -> tfswa.runtime.stream.one"]
    assert made.circles() == [["tfswa.runtime.files.two", "tfswa.runtime.stream.one"]]
    assert list(made.twins()) == ["thing"]
    assert made.long_functions() == [f"tfswa.runtime.stream.one.long: {LONG + 1} lines"]


def test_no_family_is_named_outside_its_own_file() -> None:
    """Nothing treats a family in a way of its own: whoever adds one adds a file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = re.compile(rf"\b(?:{'|'.join(project['entry-points']['tfswa.families'])})\b")
    files = {
        str(path.relative_to(ROOT))
        for stage in ("runtime", "train", "export", "calibration", "scripts")
        for path in (ROOT / stage).rglob("*.py")
        if ROOT / "train" / "families" not in path.parents
    }
    named = {name for name in files if names.search((ROOT / name).read_text(encoding="utf-8"))}
    assert named == set(NAMING_FAMILIES)


def test_spelling_is_american() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout: the files of this project are not known")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in SPELLED and path.is_file() and path != Path(__file__) and name not in OTHERS:
            words = set(filter(BRITISH.search, set(re.findall(r"\w+", path.read_text(encoding="utf-8")))))
            found += [f"{name}: {word}" for word in sorted(words) if not {word, f"{name}: {word}"} & KEPT]
    assert found == []


@pytest.mark.parametrize(
    "word", ["localise", "Quantised", "colours", "neighbouring", "_normalise", "licence"]
)
def test_british_words_are_seen(word: str) -> None:
    assert BRITISH.search(f"a {word} here")


@pytest.mark.parametrize(
    "word", ["otherwise", "noise", "raised", "precise", "emphasis", "license", "pointwise"]
)
def test_words_that_only_look_british_are_not(word: str) -> None:
    assert not BRITISH.search(f"a {word} here")
