"""``tfx import NAME`` of models in several files: an ensemble of specialists, or one network a stem."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model import known as known_list
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.ensemble import open_ensemble
from tfswa.runtime.model.opening import named_model, open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.arrangement import arrange
from tfswa.runtime.stream.separator import Separator

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")
from safetensors.torch import save_file  # noqa: E402

from tfswa.train.families import build_network, new_spec  # noqa: E402
from tfswa.train.families.htdemucs import STEMS  # noqa: E402
from tfswa.train.importers.demucs import CLASS  # noqa: E402

Audio = NDArray[np.float32]
TINY: dict[str, Any] = {"channels": 8, "bottom_channels": 8, "dconv_depth": 1, "t_layers": 2, "t_heads": 2}
TARGETS = ("vocals", "drums", "bass", "other")
RATE = 8000
UMX = ModelSpec(
    "open_unmix",
    TARGETS,
    hyper={"hidden": 16, "layers": 2, "bins": 40},
    stft=StftSpec(n_fft=128, hop=32, sample_rate=RATE, padding="reflect", seen=(0, 65)),
    chunk=ChunkSpec(frames=512, context=51, fade=25, multiple=1),
)


def random_state(spec: ModelSpec, seed: int) -> dict[str, Any]:
    """Weights of which nothing is 0 or 1 by construction."""
    generator = torch.Generator().manual_seed(seed)
    values = build_network(spec).state_dict()
    return {
        name: 0.1 + 0.2 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in values.items()
    }


def listed(folder: Path, name: str, files: Mapping[str, Path], **more: Any) -> None:
    """A list of known models with one in several files, which have no address."""
    entry = {
        "name": name,
        "stems": list(files),
        "files": [
            {"name": path.name, "sources": [], "sha256": sha256_of(path), "stem": stem}
            for stem, path in files.items()
        ],
        "license": "MIT",
        "listed": "here",
        **more,
    }
    (folder / "known.json").write_text(json.dumps({"version": 1, "defaults": {}, "models": [entry]}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(known_list, "DATA", tmp_path / "known.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bag(here: Path) -> dict[str, Path]:
    """Four small HTDemucs of the package, each tuned for a stem, as ``htdemucs-ft`` is."""
    spec = new_spec("htdemucs", stems=STEMS, hyper=TINY)
    segment = {"_type": "fraction", "numerator": 1, "denominator": 1}  # a short chunk: less to compute
    kwargs = {"sources": list(STEMS), "samplerate": 44_100, "segment": segment, **TINY}
    files = {stem: here / "bag" / f"{number}0-{stem}.th" for number, stem in enumerate(STEMS)}
    (here / "bag").mkdir()
    for seed, path in enumerate(files.values()):
        about = {"klass": CLASS, "args": "[]", "kwargs": json.dumps(kwargs)}
        save_file(random_state(spec, seed), path, about)
    training = {"instruments": list(STEMS), "target_instrument": None}
    config = {
        "audio": {"chunk_size": 343980, "sample_rate": 44100},
        "training": training,
        "inference": {"weights": np.eye(4, dtype=int).tolist()},
    }
    listed(here, "tiny-ft", files, architecture="htdemucs", config=config)
    return files


@pytest.fixture
def targets(here: Path) -> dict[str, Path]:
    """Four small Open-Unmix of a target each, as ``umxhq`` is; with what old files hold beside weights."""
    (here / "umx").mkdir()
    files = {stem: here / "umx" / f"{stem}-0.pth" for stem in TARGETS}
    spec = ModelSpec("open_unmix", ("x",), hyper=UMX.hyper, stft=UMX.stft, chunk=UMX.chunk)
    for seed, path in enumerate(files.values()):
        state = {name.removeprefix("nets.0."): value for name, value in random_state(spec, seed).items()}
        window, rate = torch.hann_window(128), torch.tensor(RATE)
        torch.save({**state, "stft.window": window, "transform.0.window": window, "sample_rate": rate}, path)
    config = {
        "audio": {"sample_rate": RATE},
        "training": {"instruments": list(TARGETS), "target_instrument": None},
    }
    listed(here, "tiny-umx", files, architecture="open_unmix", config=config)
    return files


def separated(model: str, sound: Audio, *stems: str) -> dict[str, Audio]:
    """By name, what a model or an ensemble gives."""

    def load(model: Any) -> Separator:
        return Separator(model, backend="torch", options=BackendOptions(threads=1))

    arranged = arrange([model])
    with arranged.only(stems or arranged.stems).load(load) as separator:
        return dict(zip(separator.stems, separator.separate(sound), strict=True))


def noise(seconds: float, rate: int) -> Audio:
    generator = np.random.default_rng(3)
    return generator.standard_normal((2, int(seconds * rate))).astype(np.float32) * np.float32(0.1)


def test_a_bag_becomes_an_ensemble_of_which_each_member_makes_its_stem(
    tfx: Tfx, here: Path, bag: dict[str, Path]
) -> None:
    told = tfx("import", "tiny-ft", "--file", here / "bag", "--json").json
    assert (told["members"], told["stems"]) == (4, list(STEMS))
    assert told["source_sha256"] == {path.name: sha256_of(path) for path in bag.values()}
    ensemble = open_ensemble("tiny-ft")
    assert ensemble.path == named_model("tiny-ft")
    for (stem, path), member in zip(bag.items(), ensemble.members, strict=True):
        assert Path(member.name).name == f"{1 + list(bag).index(stem)}-{stem}.tfx"
        found = member.bundle.provenance
        assert (found["checkpoint"], found["checkpoint_sha256"]) == (path.name, sha256_of(path))
        assert (found["known"], member.spec.weights_license) == ("tiny-ft", "MIT")
        assert member.spec.hyper["track_level"] == 0.2  # the file says it, the list does not
    sound = noise(1, 44_100)
    together = separated("tiny-ft", sound)
    assert tuple(together) == STEMS
    for stem, path in bag.items():
        assert tfx("import", path, "-o", here / f"{stem}.tfx").code == 0
        alone = separated(str(here / f"{stem}.tfx"), sound)
        np.testing.assert_array_equal(together[stem], alone[stem])
        others = [name for name in STEMS if name != stem]
        assert all(np.abs(together[name] - alone[name]).max() > 0 for name in others)


def test_one_stem_of_a_bag_runs_one_network(tfx: Tfx, here: Path, bag: dict[str, Path]) -> None:
    import soundfile

    assert tfx("import", "tiny-ft", "--file", here / "bag").code == 0
    assert "ensemble of 4 (htdemucs)" in tfx("models").out
    soundfile.write(here / "song.wav", noise(0.5, 44_100).T, 44_100, subtype="FLOAT")
    asked = ("separate", "song.wav", "-m", "tiny-ft", "--backend", "torch", "--threads", 1)
    done = tfx(*asked, "--stems", "bass", "-o", "one")
    assert done.code == 0, done.err
    assert [line.split(" in ")[0].rpartition("/")[2] for line in done.err.splitlines()] == ["2-bass.tfx"]
    both = tfx(*asked, "--stems", "vocals,bass", "-o", "two")
    assert [line.split(" in ")[0].rpartition("/")[2] for line in both.err.splitlines()] == [
        "2-bass.tfx",
        "4-vocals.tfx",
        "tiny-ft: parity is of each model alone",
    ]
    read = [
        soundfile.read(here / folder / "song" / "bass.wav", dtype="float32")[0] for folder in ("one", "two")
    ]
    np.testing.assert_array_equal(*read)


def test_networks_of_a_stem_each_become_one_bundle(tfx: Tfx, here: Path, targets: dict[str, Path]) -> None:
    told = tfx(
        "import", "tiny-umx", *(word for path in targets.values() for word in ("--file", path)), "--json"
    )
    assert told.code == 0, told.err
    assert told.json["source_sha256"] == {path.name: sha256_of(path) for path in targets.values()}
    bundle = open_model("tiny-umx").bundle
    assert bundle is not None
    spec = bundle.spec
    assert (spec.stems, spec.stft, spec.chunk) == (TARGETS, UMX.stft, UMX.chunk)
    assert {name: spec.hyper[name] for name in UMX.hyper} == UMX.hyper
    assert (spec.weights_license, bundle.provenance["known"]) == ("MIT", "tiny-umx")
    sound = noise(5, RATE)
    together = separated("tiny-umx", sound)
    for stem, path in targets.items():
        done = tfx("import", path, "-o", here / f"{stem}.tfx")  # known by its hash, as a network of this stem
        assert done.code == 0, done.err
        alone = separated(str(here / f"{stem}.tfx"), sound)
        assert next(iter(alone)) == stem
        np.testing.assert_allclose(together[stem], alone[stem], rtol=0, atol=1e-6)  # batched otherwise
        assert np.abs(alone[stem]).max() > 1e-3
    assert len({float(np.abs(audio).max()) for audio in together.values()}) == 4


def test_a_separator_of_the_package_is_known_too(tfx: Tfx, here: Path, targets: dict[str, Path]) -> None:
    every: dict[str, Any] = {"stft.window": torch.hann_window(128), "sample_rate": torch.tensor(RATE)}
    for stem, path in targets.items():
        state = torch.load(path, weights_only=True)
        every |= {f"target_models.{stem}.{name}": value for name, value in state.items()}
    torch.save(every, here / "separator.pth")
    asked = ("import", here / "separator.pth", "--stft", f"sample_rate={RATE}")
    assert tfx(*asked, "-o", here / "a.tfx").code == 0
    turned = ",".join(reversed(TARGETS))
    assert tfx(*asked, "--stems", turned, "-o", here / "b.tfx").code == 0
    assert tfx("import", "tiny-umx", "--file", here / "umx", "-o", here / "c.tfx").code == 0
    a, b, c = (Bundle.open(here / f"{name}.tfx") for name in "abc")
    assert (a.spec.stems, b.spec.stems) == (TARGETS, TARGETS[::-1])
    for name, value in c.weights().items():
        np.testing.assert_array_equal(a.weights()[name], value)
        place = int(name.split(".")[1])
        turned = name.replace(f"nets.{place}.", f"nets.{3 - place}.")
        np.testing.assert_array_equal(b.weights()[turned], value)


@pytest.mark.parametrize("kind", ["bag", "targets"])
def test_a_damaged_file_leaves_nothing(
    tfx: Tfx, here: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """The third of four is cut, and the list says that this is what it is: it is refused while it is read."""
    files: dict[str, Path] = request.getfixturevalue(kind)
    name = "tiny-ft" if kind == "bag" else "tiny-umx"
    third = list(files.values())[2]
    third.write_bytes(third.read_bytes()[:-200])
    folder, out = third.parent, here / "out"
    out.mkdir()
    done = tfx("import", name, "--file", folder, "-o", out / "x.tfx")
    assert (done.code, len(done.lines), "wanted is" in done.err) == (1, 1, True), done.err
    entries = json.loads((here / "known.json").read_text())
    entries["models"][0]["files"][2]["sha256"] = sha256_of(third)
    (here / "known.json").write_text(json.dumps(entries))
    done = tfx("import", name, "--file", folder, "-o", out / "x.tfx")
    assert (done.code, len(done.lines), third.name in done.err) == (1, 1, True), done.err
    assert list(out.iterdir()) == []
    assert list(named_model("x").parent.glob("*")) == []


def test_files_that_are_not_its(tfx: Tfx, here: Path, targets: dict[str, Path]) -> None:
    paths = list(targets.values())
    renamed = Path(shutil.copy(paths[0], here / "other name.pth"))
    for given, says in (
        (paths[:1], "tiny-umx is 4 files (vocals-0.pth, drums-0.pth, bass-0.pth, other-0.pth), given is 1"),
        ([renamed, *paths[1:]], "tiny-umx needs vocals-0.pth, given are bass-0.pth, drums-0.pth, other name"),
        ([here], "vocals-0.pth is not there: tiny-umx needs"),
    ):
        done = tfx("import", "tiny-umx", *(word for path in given for word in ("--file", path)))
        assert (done.code, len(done.lines), says in done.err) == (2, 1, True), done.err
    shutil.copy(paths[0], paths[1])
    done = tfx("import", "tiny-umx", "--file", here / "umx")
    assert (done.code, "drums-0.pth has SHA-256" in done.err) == (1, True)


def test_an_ensemble_is_replaced_by_force_alone(tfx: Tfx, here: Path, bag: dict[str, Path]) -> None:
    asked = ("import", "tiny-ft", "--file", here / "bag", "-o", here / "ft.tfx")
    assert tfx(*asked).code == 0
    assert (tfx(*asked).code, tfx(*asked, "--force").code) == (2, 0)
    assert len(open_ensemble(here / "ft.tfx").members) == len(bag)
