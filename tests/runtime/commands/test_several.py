"""``tfx separate`` with several models: what comes out, what is said, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import Tfx
from numpy.typing import NDArray

from tfswa.runtime.model.spec import ChunkSpec, StftSpec

pytest.importorskip("torch", reason="torch is not installed: it runs the networks here")

RATE = 8000
# Files hold float32, and a mean in float64 is rounded once.
TOLERANCE = 1e-6
# As of a model against its reference: float32 leaves 130 dB of 144.
REFERENCE_DB = 100.0
HYPER = {"dims": [8, 16], "depths": [1, 1], "decoder_depths": [1], "heads": [1, 2], "window": 4, "fold": 4}
Audio = NDArray[np.float32]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three models that cut a song each in its own way, and a song."""
    from tfswa.train.backend import new_bundle

    made = {
        "a": (("vocals", "drums"), StftSpec(512, 128, RATE), ChunkSpec(16, 2, 2, 8), 2),
        "b": (("drums", "vocals"), StftSpec(256, 64, RATE), ChunkSpec(32, 5, 0, 8), 2),
        "mono": (("vocals",), StftSpec(512, 128, RATE), ChunkSpec(16, 2, 2, 8), 1),
    }
    for seed, (name, (stems, stft, chunk, channels)) in enumerate(made.items()):
        new_bundle(
            "tfswa_lite",
            tmp_path / f"{name}.tfx",
            seed=seed,
            stems=stems,
            hyper=HYPER,
            stft=stft,
            chunk=chunk,
            channels=channels,
        )
    noise = np.random.default_rng(0).standard_normal((3 * RATE + 11, 2)).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "song.wav", noise, RATE, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path: str) -> Audio:
    return soundfile.read(path, dtype="float32")[0]


def separate(tfx: Tfx, output: str, *arguments: object) -> dict[str, Audio]:
    done = tfx("separate", "song.wav", *arguments, "-o", output, "--backend", "torch", "--threads", 1)
    assert done.code == 0, done.err
    return {path.stem: read(str(path)) for path in (Path(output) / "song").iterdir()}


def test_the_result_is_the_weighted_mean_of_what_each_writes_alone(tfx: Tfx, work: Path) -> None:
    alone = [separate(tfx, f"alone-{name}", "-m", f"{name}.tfx") for name in "ab"]
    found = separate(
        tfx, "both", "-m", "a.tfx", "-m", "b.tfx", "--weights", "2,1", "--weights", "drums=0,1", "--batch", 2
    )
    assert set(found) == {"vocals", "drums"}
    expected = (2 * alone[0]["vocals"].astype(np.float64) + alone[1]["vocals"]) / 3
    np.testing.assert_allclose(found["vocals"], expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found["drums"], alone[1]["drums"], rtol=0, atol=TOLERANCE)
    assert np.abs(alone[0]["vocals"] - alone[1]["vocals"]).max() > 1000 * TOLERANCE


@pytest.mark.parametrize("how", ["median", "max", "min"])
def test_each_rule_gives_stems_as_long_as_the_song(tfx: Tfx, work: Path, how: str) -> None:
    found = separate(tfx, "out", "-m", "a.tfx", "-m", "b.tfx", "--combine", how, "--stems", "vocals")
    assert {stem: audio.shape for stem, audio in found.items()} == {"vocals": (3 * RATE + 11, 2)}


@pytest.mark.parametrize("overlap", ["2", "msst:4"])
def test_more_chunks(tfx: Tfx, work: Path, overlap: str) -> None:
    own = separate(tfx, "own", "-m", "a.tfx")
    found = separate(tfx, "more", "-m", "a.tfx", "--overlap", overlap)
    batched = separate(tfx, "batched", "-m", "a.tfx", "--overlap", overlap, "--batch", 3)
    for stem, audio in found.items():
        assert audio.shape == own[stem].shape
        assert np.abs(audio - own[stem]).max() > 100 * TOLERANCE
        np.testing.assert_allclose(batched[stem], audio, rtol=0, atol=TOLERANCE)
    done = tfx("separate", "song.wav", "-m", "a.tfx", "--backend", "torch", "--overlap", overlap)
    assert f"overlap {overlap}: more chunks than the model's own, which parity does not cover" in done.err


@pytest.mark.parametrize("how", ["mean", "max"])
def test_an_ensemble_is_its_members_together(tfx: Tfx, work: Path, how: str) -> None:
    """Weights are one-hot by stem, as of a bag of networks of which each was tuned for one."""
    asked = (
        "-m",
        "a.tfx",
        "-m",
        "b.tfx",
        "--combine",
        how,
        "--weights",
        "vocals=1,0",
        "--weights",
        "drums=0,1",
    )
    together = separate(tfx, "together", *asked)
    assert tfx("combine", *asked, "-o", "both.tfx").code == 0
    (work / "a.tfx").rename(work / "gone.tfx")  # it holds copies
    found = separate(tfx, "found", "-m", "both.tfx")
    assert set(found) == {"vocals", "drums"}
    for stem, audio in found.items():
        np.testing.assert_array_equal(audio, together[stem])
    if how == "mean":
        np.testing.assert_array_equal(found["vocals"], separate(tfx, "a", "-m", "gone.tfx")["vocals"])
        np.testing.assert_array_equal(found["drums"], separate(tfx, "b", "-m", "b.tfx")["drums"])


def test_an_ensemble_gives_what_the_references_of_its_members_give_together(tfx: Tfx, work: Path) -> None:
    """Eager float64 networks on a host of their own, and plain numpy between them."""
    from tfswa.runtime.metrics import snr_db
    from tfswa.runtime.model.ensemble import open_ensemble
    from tfswa.runtime.parity.reference import load_reference

    assert tfx("combine", "-m", "a.tfx", "-m", "b.tfx", "--weights", "3,1", "-o", "both.tfx").code == 0
    found = separate(tfx, "found", "-m", "both.tfx")
    stems: list[dict[str, NDArray[np.float64]]] = []
    for member in open_ensemble("both.tfx").members:
        made = load_reference("float64")(member).separate(read("song.wav").T)
        stems.append(dict(zip(member.spec.stems, made, strict=True)))
    for stem, audio in found.items():
        snr = snr_db((3 * stems[0][stem] + stems[1][stem]).astype(np.float32) / 4, audio.T)
        assert snr is not None
        assert snr >= REFERENCE_DB


def test_inspect_and_parity_take_an_ensemble(tfx: Tfx, work: Path) -> None:
    assert tfx("combine", "-m", "a.tfx", "-m", "b.tfx", "-o", "both.tfx").code == 0
    told = tfx("inspect", "both.tfx").out
    assert ("kind: ensemble" in told, told.count("digest: ")) == (True, 2)
    gated = (
        "separate",
        "song.wav",
        "-m",
        "both.tfx",
        "--backend",
        "torch",
        "--threads",
        1,
        "--require-parity",
    )
    assert tfx(*gated).code == 3
    measured = tfx(
        "parity", "both.tfx", "--backend", "torch", "--threads", 1, "--quick", "--audio", "song.wav"
    )
    assert measured.code == 0, measured.err
    for member in ("1-a.tfx", "2-b.tfx"):
        assert (work / "both.tfx" / member / "parity.json").is_file()
    assert tfx(*gated).code == 0


def test_evaluate_measures_what_separate_writes(tfx: Tfx, work: Path) -> None:
    from tfswa.runtime.metrics import sdr_db

    weights = ("--weights", "vocals=3,1", "--weights", "drums=0,1")
    assert tfx("combine", "-m", "a.tfx", "-m", "b.tfx", *weights, "-o", "both.tfx").code == 0
    random = np.random.default_rng(1)
    truth = {stem: 0.1 * random.standard_normal((RATE, 2)).astype(np.float32) for stem in ("vocals", "drums")}
    (work / "songs" / "one").mkdir(parents=True)
    for stem, audio in truth.items():
        soundfile.write(work / "songs" / "one" / f"{stem}.wav", audio, RATE, subtype="FLOAT")
    soundfile.write(work / "song.wav", truth["vocals"] + truth["drums"], RATE, subtype="FLOAT")
    found = separate(tfx, "found", "-m", "both.tfx")
    asked = ("evaluate", "both.tfx", "--data", "songs", "--no-baselines", "--no-plot", "--jobs", 1)
    asked = (*asked, "--backend", "torch", "--threads", 1)
    done = tfx(*asked, "--json")
    assert done.code == 0, done.err
    told = done.json
    for score in told["scores"]:
        expected = sdr_db(truth[score["stem"]].T, found[score["stem"]].T)
        assert score["sdr_u_db"] == pytest.approx(expected, abs=1e-3)
    assert {score["stem"] for score in told["scores"]} == {"vocals", "drums"}
    assert (told["reused"], tfx(*asked, "--json").json["reused"]) == (0, 1)
    assert tfx("combine", "-m", "a.tfx", "-m", "b.tfx", "-o", "both.tfx", "--force").code == 0
    other = tfx(*asked)  # other weights are another model
    assert (other.code, "results of another" in other.err or "source" in other.err) == (2, True), other.err


def test_bench_times_all_networks_of_an_ensemble(tfx: Tfx, work: Path) -> None:
    assert tfx("combine", "-m", "a.tfx", "-m", "b.tfx", "-o", "both.tfx").code == 0
    asked = ("--backend", "torch", "--threads", 1, "--rounds", 2, "--json")
    (row,), (one,) = (tfx("bench", name, *asked).json["rows"] for name in ("both.tfx", "a.tfx"))
    assert row["session"].count("torch") >= 1
    assert row["passed"]
    assert row["median_ms"] > 0
    assert one["median_ms"] > 0


def test_what_cannot_be_an_ensemble(tfx: Tfx, work: Path) -> None:
    both = ("combine", "-m", "a.tfx", "-m", "b.tfx", "-o", "both.tfx")
    assert tfx(*both).code == 0
    for arguments, code, told in (
        (both, 2, "both.tfx is there already: replace it with --force"),
        (("combine", "-m", "a.tfx", "-o", "c.tfx"), 2, "an ensemble is of several models, named is a.tfx"),
        (("combine", "-m", "a.tfx", "-m", "mono.tfx", "-o", "c.tfx"), 2, "a.tfx works at 2 channels"),
        (("combine", "-m", "a.tfx", "-m", "both.tfx", "-o", "c.tfx"), 2, "both.tfx is an ensemble"),
        (("export", "both.tfx"), 1, "both.tfx is an ensemble of models, here is room for one: name a bundle"),
        (
            ("bench", "both.tfx", "--auto"),
            2,
            "both.tfx is an ensemble, --auto is of one model: name a member",
        ),
    ):
        done = tfx(*arguments)
        assert (done.code, len(done.lines), told in done.err) == (code, 1, True), done.err
    assert tfx(*both, "--force").code == 0
    assert not (work / "c.tfx").exists()


def test_a_member_that_became_another_model_is_refused(tfx: Tfx, work: Path) -> None:
    assert tfx("combine", "-m", "a.tfx", "-m", "b.tfx", "-o", "both.tfx").code == 0
    shutil.rmtree(work / "both.tfx" / "1-a.tfx")
    shutil.copytree(work / "b.tfx", work / "both.tfx" / "1-a.tfx")
    done = tfx("separate", "song.wav", "-m", "both.tfx", "--backend", "torch")
    assert (done.code, "1-a.tfx is another model than the one that was put in" in done.err) == (1, True)


def test_a_chain_is_the_second_model_on_what_the_first_writes(tfx: Tfx, work: Path) -> None:
    found = separate(tfx, "chained", "-m", "a.tfx", "--then", "vocals=b.tfx")
    assert set(found) == {"vocals.drums", "vocals.vocals", "drums"}
    alone = separate(tfx, "alone", "-m", "a.tfx")
    np.testing.assert_array_equal(found["drums"], alone["drums"])
    (work / "alone" / "song" / "vocals.wav").rename(work / "song.wav")
    for stem, audio in separate(tfx, "second", "-m", "b.tfx").items():
        np.testing.assert_allclose(found[f"vocals.{stem}"], audio, rtol=0, atol=TOLERANCE)


def test_what_is_said(tfx: Tfx, work: Path) -> None:
    asked = ("separate", "song.wav", "-m", "a.tfx", "-m", "b.tfx", "--backend", "torch", "--threads", 1)
    done = tfx(*asked)
    assert [line.split(" in ")[0] for line in done.lines] == [
        "a.tfx",
        "b.tfx",
        "mean of a.tfx and b.tfx: parity is of each model alone",
    ]
    said = tfx(*asked, "-o", "other", "--json").json
    assert said["model"] == "mean of a.tfx and b.tfx"
    assert said["evidence"].startswith("a.tfx: no parity evidence here")
    assert "; b.tfx: no parity evidence" in said["evidence"]
    gated = tfx(*asked, "-o", "gated", "--require-parity")
    assert (gated.code, "of a.tfx holds no passing certificate" in gated.err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-m", "a.tfx", "--combine", "mean"), "--combine mean is for several models, named is a.tfx"),
        (("-m", "a.tfx", "--weights", "1"), "--weights is for several models"),
        (("-m", "a.tfx", "-m", "b.tfx", "--weights", "1,x"), "weights '1,x' are not numbers"),
        (("-m", "a.tfx", "-m", "b.tfx", "--weights", "1,2,3"), "weights are 3, models are 2"),
        (("-m", "a.tfx", "-m", "b.tfx", "--weights", "1,2", "--weights", "2,1"), "given twice"),
        (("-m", "a.tfx", "-m", "b.tfx", "--weights", "vocal=1,2"), "did you mean 'vocals'"),
        (("-m", "a.tfx", "-m", "mono.tfx"), "a.tfx works at 2 channels, mono.tfx at 1"),
        (("-m", "a.tfx", "--then", "b.tfx"), "--then 'b.tfx': name a stem and a model, as vocals=dereverb"),
        (("-m", "a.tfx", "--then", "vocal=b.tfx"), "a.tfx has no stem 'vocal', did you mean 'vocals'?"),
        (("-m", "a.tfx", "--then", "vocals=mono.tfx"), "a.tfx works at 2 channels, mono.tfx at 1"),
        (("-m", "a.tfx", "--overlap", "3"), "overlap '3': choose 1, 2, 4, msst:N"),
        (("-m", "a.tfx", "-m", "b.tfx", "--stems", "bass"), "mean of a.tfx and b.tfx has no stem 'bass'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tfx: Tfx, work: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = tfx("separate", "song.wav", *arguments, "--backend", "torch")
    assert (done.code, len(done.lines), told in done.err) == (2, 1, True), done.err
    assert not Path("separated").exists()
