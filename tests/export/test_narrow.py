"""Some of the stems alone: a network of fewer, and who takes it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Tfx
from parity_fakes import CHUNK, HYPER, STFT

from tfswa.runtime.errors import UsageError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import MANIFEST, Bundle
from tfswa.runtime.model.narrowed import PART_OF, narrowed
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ChunkSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: networks need it")
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed: export to ONNX needs it")

from hybrids import recorded  # noqa: E402

from tfswa.runtime.stream.separator import Separator  # noqa: E402
from tfswa.train.backend import new_bundle  # noqa: E402
from tfswa.train.tasks import _keep_aside  # noqa: E402

STEMS = ("drums", "bass", "other", "vocals")
SHORT = ChunkSpec(16, context=2, fade=2, multiple=1)
HYBRID = recorded("narrow")
# Of each kind: modules by stem, modules by stem with LSTMs, parts of an axis, and those of two branches.
APART: dict[str, dict[str, Any]] = {
    "roformer": {
        "hyper": {"bands": "fixed", "widths": [2, 2, 4, 8, 17], "dim": 16, "depth": 1, "heads": 2},
        "stft": StftSpec(64, 16, 8000, padding="reflect", seen=(0, 33)),
        "chunk": SHORT,
    },
    "open_unmix": {
        "hyper": {"hidden": 16, "layers": 1, "bins": 40},
        "stft": StftSpec(128, 32, 8000, padding="reflect", seen=(0, 65)),
        "chunk": SHORT,
    },
    "tfswa_lite": {"hyper": HYPER, "stft": STFT, "chunk": CHUNK},
    "htdemucs": {"hyper": HYBRID.hyper, "stft": HYBRID.stft, "chunk": HYBRID.chunk},
}


def whole(path: Path, family: str = "open_unmix", **more: Any) -> Path:
    """A bundle of four stems."""
    new_bundle(family, path, **{"stems": STEMS, **APART[family], **more})
    return path


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(5).standard_normal((6000, 2)) * 0.1
    soundfile.write(path, noise.astype(np.float32), 8000, subtype="FLOAT")
    return path


def stems_of(name: str, song: Path, backend: str = "torch") -> dict[str, Any]:
    audio = soundfile.read(song, dtype="float32", always_2d=True)[0].T
    with Separator(name, backend=backend) as separator:
        return dict(zip(separator.stems, separator.separate(audio), strict=True))


@pytest.mark.parametrize("family", APART)
def test_it_gives_what_the_whole_network_gives(family: str, tmp_path: Path, song: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx", family)
    done = tfx("export", path, "--stems", "vocals,bass")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{path}/only/bass+vocals.tfx/model.onnx  ")
    inside = path / "only" / "bass+vocals.tfx"  # in the network's order
    made, all_of_it = Bundle.open(inside), Bundle.open(path)
    assert made.spec.stems == made.spec.outputs == ("bass", "vocals")
    assert made.provenance[PART_OF] == all_of_it.digest
    assert made.spec.parameters < all_of_it.spec.parameters
    assert made.spec.gflop_per_second <= all_of_it.spec.gflop_per_second
    right = stems_of(str(path), song)
    for backend in ("torch", "ort"):
        found = stems_of(str(inside), song, backend)
        assert list(found) == ["bass", "vocals"]
        for stem, value in found.items():
            alike = snr_db(right[stem], value)
            assert alike is None or alike >= 80
    assert snr_db(right["bass"], right["vocals"]) < 40  # they could not be taken for each other


@pytest.mark.parametrize(
    ("family", "hyper", "stems", "problem"),
    [
        ("spleeter", {"bins": 64, "filters": [4, 6, 8]}, "vocals,bass,drums", r"the others drums is another"),
        ("tfswa_resunet", {"dims": [6, 8], "depth": 1, "modules": 1}, "vocals", r"its decoder\.\S+ is \["),
    ],
)
def test_stems_that_do_not_come_apart_are_refused(
    family: str, hyper: dict[str, Any], stems: str, problem: str, tmp_path: Path, tfx: Tfx
) -> None:
    path = tmp_path / "whole.tfx"
    new_bundle(family, path, stems=STEMS, hyper=hyper, stft=STFT, chunk=ChunkSpec(80, 4, 2, 1))
    before = sorted(path.rglob("*"))
    done = tfx("export", path, "--stems", stems)
    assert (done.code, done.out, len(done.lines)) == (1, "", 1)
    assert re.search(problem, done.err), done.err
    assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize(
    ("stems", "problem"),
    [
        ("voices", "has no stem 'voices', it has drums, bass, other, vocals"),
        ("other", "other of {path} is what all others leave of the mixture"),
        ("", "has no stem ''"),
        ("vocals,drums,bass", "gives drums, bass, vocals and no other stem: leave --stems out"),
    ],
)
def test_stems_that_are_no_part_are_refused(stems: str, problem: str, tmp_path: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx", network_stems=("drums", "bass", "vocals"), residual_stem="other")
    done = tfx("export", path, "--stems", stems)
    assert (done.code, done.out, len(done.lines)) == (2, "", 1)
    assert problem.format(path=path) in done.err
    assert [entry.name for entry in path.iterdir() if entry.name == "only"] == []


def test_separate_takes_it_where_it_has_what_is_asked_for(tmp_path: Path, song: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx")
    assert tfx("export", path).code == tfx("export", path, "--stems", "vocals,bass").code == 0

    def model(*words: str) -> str:
        out = tmp_path / "out" / "-".join(words)
        done = tfx("separate", song, "-m", path, "-o", out, "--json", *words)
        assert {file.name for file in out.rglob("*.wav")} == {
            f"{stem}.wav" for stem in (words[1].split(",") if words else STEMS)
        }
        return str(done.json["model"])

    inside = f"{path}/only/bass+vocals.tfx"
    assert model("--stems", "vocals") == inside
    assert model("--stems", "vocals,bass") == inside
    assert model("--stems", "vocals,drums") == str(path)
    assert tfx("export", path, "--format", "torchscript").code == 0
    assert model("--stems", "vocals", "--backend", "torchscript") == str(path)
    assert model() == str(path)
    assert tfx("export", path, "--stems", "vocals").code == 0  # fewer stems: that one is taken from now on
    assert model("--stems", "vocals", "--backend", "ort") == f"{path}/only/vocals.tfx"
    vocals = [soundfile.read(file)[0] for file in sorted((tmp_path / "out").rglob("vocals.wav"))]
    for one in vocals[1:]:
        alike = snr_db(vocals[0].T, one.T)
        assert alike is None or alike >= 80


def test_one_that_is_damaged_or_of_another_model_is_left_out(
    tmp_path: Path, tfx: Tfx, caplog: pytest.LogCaptureFixture
) -> None:
    path = whole(tmp_path / "whole.tfx")
    assert tfx("export", path, "--stems", "vocals").code == 0
    found = narrowed(open_model(path), ["vocals"])
    assert found is not None
    assert "left out" not in caplog.text
    weights = path / "only" / "vocals.tfx" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    done = tfx("export", path, "-o", tmp_path / "copy.tfx")
    assert done.code == 0
    assert f"{path}/only/vocals.tfx is left out: " in caplog.text
    assert not (tmp_path / "copy.tfx" / "only").exists()
    assert tfx("export", path, "--stems", "vocals").code == 0  # made again
    assert Bundle.open(weights.parent).weights()
    other = whole(tmp_path / "other.tfx", seed=1)
    shutil.copytree(path / "only", other / "only")
    assert narrowed(open_model(other), ["vocals"]) is None
    assert "other.tfx/only/vocals.tfx is left out, it was made of another model" in caplog.text
    assert tfx("export", other, "--stems", "vocals").code == 0  # made again
    assert narrowed(open_model(other), ["vocals"]) is not None
    (path / "only" / "vocals.tfx" / MANIFEST).write_text("{}")
    assert narrowed(open_model(path), ["vocals"]) is None
    assert "whole.tfx/only/vocals.tfx is left out: " in caplog.text
    done = tfx("export", path, "--stems", "vocals")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "is not a bundle: not replaced" in done.err  # {} is nobody's


def test_what_needs_all_stems_or_another_artifact_is_done_by_the_whole(
    tmp_path: Path, song: Path, tfx: Tfx, caplog: pytest.LogCaptureFixture
) -> None:
    path = whole(tmp_path / "whole.tfx")
    assert tfx("export", path).code == tfx("export", path, "--stems", "vocals").code == 0
    assert tfx("parity", path, "--backend", "ort").code == 0

    def model(*words: str) -> str:
        out = tmp_path / "out" / "-".join(words)
        done = tfx("separate", song, "-m", path, "-o", out, "--stems", "vocals", "--json", *words)
        return str(done.json["model"])

    inside = f"{path}/only/vocals.tfx"
    assert model("--wiener", "1") == str(path)  # which shares the mixture out between all stems
    assert model("--require-parity") == str(path)
    assert f"{inside} is not used: " in caplog.text
    assert tfx("parity", inside, "--backend", "ort").code == 0
    assert model("--require-parity", "--backend", "ort") == inside
    for file in (path / "only" / "vocals.tfx").glob("*.onnx"):
        file.rename(file.with_suffix(".away"))
    caplog.clear()
    assert model("--backend", "ort") == str(path)
    assert model("--precision", "fp32") == str(path)


def test_links_are_neither_written_nor_read(tmp_path: Path, tfx: Tfx) -> None:
    path, victim = whole(tmp_path / "whole.tfx"), whole(tmp_path / "victim.tfx", seed=1)
    before = {file: file.read_bytes() for file in victim.iterdir()}
    (path / "only").mkdir()
    (path / "only" / "vocals.tfx").symlink_to(victim)
    done = tfx("export", path, "--stems", "vocals")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "is a link to" in done.err
    assert {file: file.read_bytes() for file in victim.iterdir()} == before
    assert narrowed(open_model(path), ["vocals"]) is None


def test_stems_whose_names_together_are_anothers(tmp_path: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx", stems=("a", "b", "a+b", "c"))
    assert tfx("export", path, "--stems", "a+b").code == 0
    assert tfx("export", path, "--stems", "a,b").code == 0
    assert Bundle.open(path / "only" / "a+b.tfx").spec.stems == ("a", "b")


def test_new_weights_do_not_cost_what_was_exported(tmp_path: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "best.tfx")
    assert tfx("export", path, "--stems", "vocals").code == 0
    with pytest.raises(UsageError, match=r"holds only/vocals.tfx, made for its present chunking"):
        Bundle.open(path).check_rechunk()
    _keep_aside(path)
    (kept,) = tmp_path.glob("best-step-*.tfx")
    assert narrowed(open_model(kept), ["vocals"]) is not None


def test_one_of_which_no_export_was_made_is_not_taken(tmp_path: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx")
    refused = tfx("export", path, "--stems", "vocals", "--audio", tmp_path / "none.wav")
    assert refused.code == 1
    assert (path / "only" / "vocals.tfx").is_dir()
    assert narrowed(open_model(path), ["vocals"]) is None
    assert tfx("export", path, "--stems", "vocals").code == 0
    assert narrowed(open_model(path), ["vocals"]) is not None


def test_it_may_go_elsewhere(tmp_path: Path, song: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx")
    before = sorted(path.rglob("*"))
    assert tfx("export", path, "--stems", "vocals", "-o", tmp_path / "voice.tfx").code == 0
    assert tfx("export", path, "--stems", "vocals", "-o", tmp_path / "voice.onnx").code == 0
    assert sorted(path.rglob("*")) == before
    right = stems_of(str(path), song)["vocals"]
    for name in ("voice.tfx", "voice.onnx"):
        found = stems_of(str(tmp_path / name), song, "ort")
        assert list(found) == ["vocals"]
        alike = snr_db(right, found["vocals"])
        assert alike is not None
        assert alike >= 80


def test_a_copy_of_a_bundle_has_it_too(tmp_path: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx")
    assert tfx("export", path, "--stems", "vocals").code == 0
    both = tmp_path / "both.tfx"
    assert tfx("combine", "-m", path, "-m", path, "-o", both).code == 0
    for member in both.glob("*.tfx"):
        assert narrowed(open_model(member), ["vocals"]) is not None


def test_inspect_names_it(tmp_path: Path, tfx: Tfx) -> None:
    path = whole(tmp_path / "whole.tfx")
    assert tfx("export", path, "--stems", "vocals").code == 0
    assert f"only: {path}/only/vocals.tfx" in tfx("inspect", path).out.splitlines()
    assert tfx("inspect", path, "--json").json["only"] == [f"{path}/only/vocals.tfx"]
