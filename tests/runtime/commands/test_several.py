"""``tfx separate`` with several models: what comes out, what is said, and what is refused."""

from __future__ import annotations

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
        (("-m", "a.tfx", "--overlap", "3"), "overlap '3': choose 1, 2, 4, or msst:N"),
        (("-m", "a.tfx", "-m", "b.tfx", "--stems", "bass"), "mean of a.tfx and b.tfx has no stem 'bass'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tfx: Tfx, work: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = tfx("separate", "song.wav", *arguments, "--backend", "torch")
    assert (done.code, len(done.lines), told in done.err) == (2, 1, True), done.err
    assert not Path("separated").exists()
