"""docs/json.md against what the commands print: every key, every type, and nothing undocumented."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile
from command_line import Tfx

from tfswa.runtime.cli import COMMANDS, attribute
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import METADATA, embed, open_model
from tfswa.runtime.model.spec import ChunkSpec, StftSpec

pytest.importorskip("torch", reason="torch is not installed: networks here are eager")

DOCUMENT = Path(__file__).parents[3] / "docs" / "json.md"
RATE = 8000
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "list": (list,),
    "null": (type(None),),
}


def tables() -> dict[str, dict[str, str]]:
    """Type by key, of each section."""
    found: dict[str, dict[str, str]] = {}
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
        assert len(rows) == len(re.findall(r"^\| `", section, re.MULTILINE)), "a row that cannot be read"
        assert len(rows) == len({key for key, _ in rows}), "a key twice"
        found[section.splitlines()[0]] = {key: kind.strip() for key, kind in rows}
    return found


TABLES = tables()


def leaves(value: Any, table: dict[str, str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Key, as the document writes it, and value of everything in an object."""
    if {"object", "list"} & set(table.get(path, "").split(" or ")):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            within = f"{path}." if path else ""
            free = {row[len(within) :].split(">")[0] + ">" for row in table if row.startswith(f"{within}<")}
            assert len(free) <= 1
            yield from leaves(inner, table, within + (free.pop() if free else key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, table, f"{path}[]")
    else:
        yield path, value


def check(printed: dict[str, Any], section: str, may_be_empty: tuple[str, ...] = ()) -> None:
    """Every key documented and every documented key there, but for empty lists that are named."""
    table = TABLES[section]
    seen = set()
    for key, value in leaves(printed, table):
        assert key in table, f"{key} is not documented in {section}"
        kinds = tuple(kind for word in table[key].split(" or ") for kind in KINDS[word])
        assert isinstance(value, kinds), f"{key} is {value!r}, documented as {table[key]}"
        assert not isinstance(value, bool) or table[key] == "boolean", key
        seen.add(key)
    missing = {key for key in table if key not in seen and not key.startswith(may_be_empty or ("?",))}
    assert missing == set(), f"documented in {section} and not printed"
    assert list(dict.fromkeys(key.split(".")[0].removesuffix("[]") for key in table)) == list(printed)


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(tfx: Tfx) -> Ask:
    """``ask("inspect", "demo", code=0)``: the one object that this prints with ``--json``."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def run(*arguments: object, code: int = 0) -> dict[str, Any]:
        done = tfx(*arguments, "--json")
        assert done.code == code
        assert done.out.endswith("}\n")
        found = json.loads(done.out, parse_constant=refuse)  # one object, or this fails
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    from tfswa.train.backend import new_bundle

    hyper: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1], "decoder_depths": [1], "heads": [1, 2]}
    hyper |= {"window": 4, "fold": 4}
    stft, chunk = StftSpec(512, 128, RATE), ChunkSpec(16, 2, 2, 8)
    return new_bundle("tfswa_lite", tmp_path / "tiny.tfx", hyper=hyper, stft=stft, chunk=chunk)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Half a second beyond full scale, so that something is clipped."""
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).standard_normal((RATE // 2, 2)).astype(np.float32)
    soundfile.write(path, noise * 3, RATE, subtype="FLOAT")
    return path


def test_separate(ask: Ask, bundle: Bundle, song: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(song, folder / "done.wav")
    (folder / "notes.txt").write_text("notes")
    where = ("-m", bundle.path, "--backend", "torch", "-o", tmp_path / "out", "--format", "wav16")
    assert ask("separate", folder, *where, "--wiener", 2)["wiener"] == 2
    printed = ask("separate", song, bad, folder, *where, "--skip-existing", code=1)
    check(printed, "tfx separate")
    assert printed["wiener"] == 0
    assert printed["skipped"] == [str(folder / "done.wav")]
    assert printed["files"][0]["clipped"]["vocals"] > 0
    assert printed["errors"][0]["input"] == str(bad)
    assert (printed["recomputed_by"], printed["files"][0]["recomputed"]) == (None, [])


def test_separate_of_one_bad_file_prints_its_object_too(ask: Ask, bundle: Bundle, tmp_path: Path) -> None:
    where = ("-m", bundle.path, "--backend", "torch", "-o", tmp_path / "out")
    printed = ask("separate", tmp_path / "none.wav", *where, code=1)
    check(printed, "tfx separate", may_be_empty=("files[]", "left_out[]", "skipped[]"))
    assert "none.wav cannot be opened" in printed["errors"][0]["error"]


def test_parity_and_the_evidence_it_stores(ask: Ask, bundle: Bundle) -> None:
    printed = ask("parity", bundle.path, "--backend", "torch", "--reference", "float64")
    check(printed, "tfx parity", may_be_empty=("missing", "certificates[].breaches[]", "errors[]"))
    (run,) = json.loads(Path(printed["evidence"]).read_text())["certificates"]
    (shown,) = printed["certificates"]
    assert {key: shown[key] for key in run} == run
    assert list(shown) == [*run, "passed", "breaches", "polygraphy"]


def test_parity_that_fails_prints_its_object_too(ask: Ask, bundle: Bundle, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text("[fp32]\nsnr_db = 500\n")
    printed = ask("parity", bundle.path, "--quick", "--gates", gates, code=3)
    empty = ("certificates[].axes[]", "certificates[].reference_rounding_db", "errors[]")
    check(printed, "tfx parity", may_be_empty=empty)
    assert "holds no onnx artifact" in printed["missing"]["ort fp32"]
    assert printed["certificates"][0]["passed"] is False


def test_parity_seams(ask: Ask, bundle: Bundle) -> None:
    printed = ask("parity", "seams", bundle.path, "--threshold-db", 30, "--store")
    check(printed, "tfx parity seams")
    assert Bundle.open(bundle.path).spec.chunk.context == printed["context"] != printed["present"]


def test_parity_localize(ask: Ask, bundle: Bundle) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: tfx export needs it")
    ask("export", bundle.path, "--format", "torchscript")
    sound = ask("parity", "localize", bundle.path, "--backend", "torchscript")
    assert sound["culprit"] is sound["operator"] is None
    assert sound["compared"] == len(sound["steps"]) > 10
    damage_trace(Bundle.open(bundle.path))
    printed = ask("parity", "localize", bundle.path, "--backend", "torchscript", code=3)
    check(printed, "tfx parity localize", may_be_empty=("skipped[]",))
    assert printed["culprit"]["module"] == "stem"


def damage_trace(bundle: Bundle) -> None:
    """Change a weight of the first convolution."""
    import torch

    from tfswa.runtime.backends.torchscript import jit_allowed

    with jit_allowed():
        loaded: Any = torch.jit.load(str(bundle.path / "model.ts"))
        node = next(n for n in loaded.graph.nodes() if n.kind() == "aten::_convolution")
        weight = list(node.inputs())[1].toIValue()  # shared with the module's own
        weight.view(-1)[0] += 1.0
        bundle.add(
            "model.ts", lambda to: torch.jit.save(loaded, str(to)), kind="torchscript", precision="fp32"
        )
    open_model(bundle.path, trusted=True)


@pytest.mark.slow
def test_evaluate(ask: Ask, bundle: Bundle, song_root: Path, tmp_path: Path) -> None:
    from tfswa.runtime.errors import BackendUnavailable
    from tfswa.runtime.evaluation import boxplot

    try:
        boxplot.require_boxplot()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    data = Path(shutil.copytree(song_root, tmp_path / "data"))
    (data / "B" / "vocals.wav").write_text("no audio")
    where = ("--data", data, "--songs", "A", "--songs", "B", "-o", tmp_path / "out", "--backend", "torch")
    printed = ask("evaluate", bundle.path, *where, code=1)
    check(printed, "tfx evaluate", may_be_empty=("notes.",))
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["scores"] == printed["scores"]
    assert stored["identity"] == printed["identity"]
    assert stored["errors"] == printed["errors"]
    (song,) = stored["songs"]
    assert [score["sdr_u_db"] for score in song["scores"]] == [s["sdr_u_db"] for s in printed["scores"]]


def test_inspect_a_bundle(ask: Ask, bundle: Bundle) -> None:
    check(ask("inspect", bundle.path), "tfx inspect: a bundle", may_be_empty=("parity[]", "only[]"))
    ask("parity", bundle.path, "--backend", "torch")
    check(ask("inspect", bundle.path), "tfx inspect: a bundle", may_be_empty=("only[]",))


def test_combine_and_inspect_an_ensemble(ask: Ask, bundle: Bundle, tmp_path: Path) -> None:
    both = ("-m", bundle.path, "-m", bundle.path, "-o", tmp_path / "both.tfx")
    made = ask("combine", *both, "--weights", "2,1")
    check(made, "tfx combine")
    printed = ask("inspect", tmp_path / "both.tfx")
    check(printed, "tfx inspect: an ensemble")
    assert printed["weights"] == {"*": [2, 1]}
    for said, member in zip(made["members"], printed["members"], strict=True):
        check(member, "tfx inspect: a bundle", may_be_empty=("parity[]", "only[]"))
        assert (said["name"], said["digest"]) == (member["model"], bundle.digest)


def test_sign(ask: Ask, bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed: it signs")
    import subprocess

    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    ask("parity", bundle.path, "--backend", "torch", "--quick")
    check(ask("sign", bundle.path, "--key", key), "tfx sign")


def test_inspect_a_file(ask: Ask, bundle: Bundle, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "model.ts"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"model/extra/{METADATA}.json", embed(bundle.spec, "fp32", bundle.digest))
    check(ask("inspect", path), "tfx inspect: an exported file")


def test_inspect_a_family(ask: Ask) -> None:
    check(ask("inspect", "tfswa_lite"), "tfx inspect: a family")


def test_inspect_attention(ask: Ask, bundle: Bundle, song_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")
    pictures = ("--attention", song_root / "A", "-o", tmp_path / "pictures")
    printed = ask("inspect", bundle.path, *pictures)
    check(printed, "tfx inspect --attention")
    assert {file["overview"] for file in printed["files"]} == {True, False}


def test_models(ask: Ask, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfswa.runtime.model import opening

    bad = bundle.path.with_name("bad.tfx")
    bad.mkdir()
    (bad / "manifest.json").write_text("{}")
    names = {"bad": bad, "demo": bundle.path, "gone": bundle.path / "x"}
    monkeypatch.setattr(opening, "model_names", lambda: names)
    printed = ask("models")
    assert [entry["model"] for entry in printed["damaged"]] == ["bad"]
    check(printed, "tfx models")
    assert [entry["model"] for entry in printed["models"]] == ["demo"]


def test_models_known(ask: Ask) -> None:
    printed = ask("models", "--known")
    check(printed, "tfx models --known")
    assert {"kim-vocals", "htdemucs"} <= {entry["name"] for entry in printed["known"]}


def test_new(ask: Ask, tmp_path: Path) -> None:
    hyper = ("dims=[8,16]", "depths=[1,1]", "decoder_depths=[1]", "heads=[1,2]")
    given = [text for pair in hyper for text in ("--hyper", pair)]
    check(ask("new", "tfswa_lite", "-o", tmp_path / "new.tfx", "--seed", "3", *given), "tfx new")


def test_import_spleeter(ask: Ask, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfswa.train.importers import spleeter

    monkeypatch.setattr(spleeter, "import_spleeter", lambda *_, **__: bundle)  # tested with the real wheel
    check(ask("import", "spleeter"), "tfx import: a name")


def test_import_checkpoint(ask: Ask, tmp_path: Path) -> None:
    import torch

    from tfswa.train.families import build_network, new_spec

    hyper = {"dims": [8, 16], "depths": [1, 1], "decoder_depths": [1], "heads": [1, 2]}
    state = build_network(new_spec("tfswa_lite", hyper=hyper)).state_dict()
    torch.save({**state, "epoch": 3}, tmp_path / "my.pt")
    given = [word for name, value in hyper.items() for word in ("--hyper", f"{name}={value}")]
    line = ("import", tmp_path / "my.pt", "--family", "tfswa_lite", "-o", tmp_path / "my.tfx")
    check(ask(*line, *given), "tfx import: a file")


def test_train(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfswa.train import config_files, loop
    from tfswa.train.config import TrainConfig

    # What a run scores is the loop's to test; here it is told, without one song held out too.
    monkeypatch.setattr(config_files, "load_config", lambda *_, **__: TrainConfig())
    (tmp_path / "config.toml").touch()
    for scores in ({"vocals": 6.5}, {}):
        monkeypatch.setattr(loop, "train", lambda *_, scores=scores, **__: scores)
        printed = ask("train", tmp_path / "config.toml", "-o", tmp_path / "run")
        check(printed, "tfx train", may_be_empty=() if scores else ("scores",))


def test_data_check(ask: Ask, song_root: Path, tmp_path: Path) -> None:
    good = ask("data", "check", song_root)
    check(good, "tfx data check", may_be_empty=("findings[]",))
    assert good["findings"] == []
    shutil.copytree(song_root / "A", tmp_path / "songs" / "A")
    silent = np.zeros((6 * RATE, 2), np.float32)
    soundfile.write(tmp_path / "songs" / "A" / "bass.wav", silent, RATE)
    (tmp_path / "songs" / "A" / "drums.wav").write_text("no audio")
    bad = ask("data", "check", tmp_path / "songs", code=1)
    check(bad, "tfx data check")
    found = {source["source"]: source for source in bad["songs"][0]["sources"]}
    assert found["bass"]["level_dbfs"] is found["drums"]["seconds"] is None
    assert bad["trainable"] is False


def test_data_preview(ask: Ask, song_root: Path, tiny_family: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[model]\nfamily = "{tiny_family}"\n[data]\nroot = "{song_root}"\nvalidation = ["B"]\n'
        "[augment]\nfrequency_mask = 0.5\ntime_mask = 0.5\n[optim]\nframes = 32\n"
    )
    printed = ask("data", "preview", config, "-o", tmp_path / "out", "-n", 8)
    check(printed, "tfx data preview")
    changes = [source["change"] for chunk in printed["chunks"] for source in chunk["sources"]]
    for mask in ("frequency_mask", "time_mask"):
        assert {len(change[mask] or ()) for change in changes} == {0, 2}
    assert json.loads((tmp_path / "out" / "preview.json").read_text()) == {"chunks": printed["chunks"]}


def test_data_example(ask: Ask, tmp_path: Path) -> None:
    check(ask("data", "example", "-o", tmp_path / "songs"), "tfx data example")


def test_data_musdb(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfswa.train.data import musdb

    monkeypatch.setattr(musdb, "download", lambda out: 144)  # what it fetches is tested elsewhere
    printed = ask("data", "musdb", "--download", "-o", tmp_path / "musdb")
    check(printed, "tfx data musdb")
    assert printed == {"root": str(tmp_path / "musdb"), "songs": 144}


@pytest.mark.slow
def test_bench(ask: Ask, bundle: Bundle) -> None:
    entries = ("torch", "torch:bf16", "ort")  # no graph for the last
    asked = [word for entry in entries for word in ("--backend", entry)]
    printed = ask("bench", bundle.path, *asked, "--rounds", 1, code=4)
    check(printed, "tfx bench")


def test_doctor(ask: Ask) -> None:
    check(ask("doctor"), "tfx doctor")
    check(ask("doctor", "--clear-cache"), "tfx doctor --clear-cache")


@pytest.mark.slow
def test_export_and_build_engine(ask: Ask, bundle: Bundle) -> None:
    check(ask("export", bundle.path, "--format", "torchscript"), "tfx export")
    check(ask("export", bundle.path, "--format", "onnx"), "tfx export")
    check(ask("export", bundle.path, "--transform"), "tfx export --transform")
    served = ("--format", "triton", "-o", bundle.path.parent / "repository")
    check(ask("export", bundle.path, *served), "tfx export --format triton")
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    check(ask("build-engine", bundle.path, "--flavor", "rtx"), "tfx build-engine")


@pytest.mark.slow
def test_calibrate(ask: Ask, bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: tfx export needs it")
    for number in range(2):
        noise = 0.1 * np.random.default_rng(number).standard_normal((RATE * 2, 2))
        soundfile.write(tmp_path / f"{number}.wav", noise.astype(np.float32), RATE, subtype="FLOAT")
    ask("export", bundle.path, "--format", "onnx")
    small = ("--audio", tmp_path, "--chunks", 4, "--held-out", 2, "--depth", 1)
    printed = ask("calibrate", bundle.path, *small, "--sensitivity", "--cost", "counted")
    check(printed, "tfx calibrate")


def test_every_section_is_compared() -> None:
    assert list(TABLES) == [
        "tfx separate",
        "tfx combine",
        "tfx parity",
        "tfx parity seams",
        "tfx parity localize",
        "tfx evaluate",
        "tfx sign",
        "tfx bench",
        "tfx inspect: a bundle",
        "tfx inspect: an ensemble",
        "tfx inspect: an exported file",
        "tfx inspect: a family",
        "tfx inspect --attention",
        "tfx doctor",
        "tfx doctor --clear-cache",
        "tfx models",
        "tfx models --known",
        "tfx train",
        "tfx new",
        "tfx import: a name",
        "tfx import: a file",
        "tfx data check",
        "tfx data preview",
        "tfx data example",
        "tfx data musdb",
        "tfx export",
        "tfx export --transform",
        "tfx export --format triton",
        "tfx build-engine",
        "tfx calibrate",
    ]


WRONG = {  # what is not there, or is no value, by command: each fails before it has anything else to say
    "separate": ("song.wav", "-m", "nowhere.tfx"),
    "combine": ("-m", "nowhere.tfx", "-m", "nowhere.tfx"),
    "parity measure": ("nowhere.tfx",),
    "parity seams": ("nowhere.tfx",),
    "parity localize": ("nowhere.tfx", "--backend", "ort"),
    "sign": ("nowhere.tfx", "--key", "nowhere.pem"),
    "bench": ("nowhere.tfx",),
    "evaluate": ("--data", "nowhere", "-o", "out"),
    "inspect": ("nowhere.tfx",),
    "doctor": ("--clear-cache", "nothing"),
    "models": ("one",),
    "train": ("nowhere.toml", "-o", "out"),
    "new": ("no_family", "-o", "new.tfx"),
    "import": ("nowhere.ckpt", "--family", "tfswa_unet"),
    "data check": ("nowhere",),
    "data preview": ("nowhere.toml", "-o", "out"),
    "data example": ("-o", "no/such/\x1bfolder"),
    "data musdb": (),
    "export": ("nowhere.tfx",),
    "calibrate": ("nowhere.tfx",),
    "build-engine": ("nowhere.tfx",),
}


def commands_with_json() -> Iterator[str]:
    def below(name: str, command: click.Command) -> Iterator[str]:
        for inner, found in getattr(command, "commands", {}).items():
            yield from below(f"{name} {inner}", found)
        if any("--json" in parameter.opts for parameter in command.params):
            yield name

    for name, (module, _) in COMMANDS.items():
        yield from below(name, getattr(import_module(module), attribute(name)))


def test_every_command_that_has_json_is_tried() -> None:
    assert set(commands_with_json()) == set(WRONG)


@pytest.mark.parametrize("command", WRONG)
def test_a_failure_is_an_object_too(
    tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").write_text("a file where a folder is wanted")
    for arguments in (("--json", *WRONG[command]), (*WRONG[command], "--json", "--no-such-option")):
        done = tfx(*command.split(), *arguments)
        assert done.code in (1, 2, 4)
        (entry,) = json.loads(done.out).pop("errors")
        assert entry["input"] is None
        assert done.lines[-1] in (f"tfx: {entry['error']}", f"Error: {entry['error']}")
        assert "\x1b" not in done.out


def test_no_object_where_json_is_a_file_or_something_was_printed(tfx: Tfx, bundle: Bundle) -> None:
    assert tfx("inspect", "nowhere.tfx").out == ""
    assert tfx("inspect", "--", "--json").out == ""
    done = tfx("separate", "nowhere.wav", "-m", bundle.path, "--backend", "torch", "--json")
    assert done.code == 1
    assert len(done.out.splitlines()) == 1
    assert json.loads(done.out)["errors"][0]["input"] == "nowhere.wav"
