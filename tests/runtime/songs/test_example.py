"""`tfx data example`: songs that every command takes, the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import Tfx

from tfswa.runtime.songs import example
from tfswa.runtime.songs.example import NAMES, PEAK, SYNTHETIC, synthetic_sources
from tfswa.runtime.songs.finding import find_songs


def test_a_seed_is_a_song_in_which_everything_sounds() -> None:
    one, again, other = (synthetic_sources(seed, 4.0) for seed in (1, 1, 2))
    for name in NAMES:
        np.testing.assert_array_equal(one[name], again[name])
        assert not np.array_equal(one[name], other[name])
        assert np.sqrt(np.square(one[name]).mean()) > 0.01


@pytest.mark.parametrize("recorded", [True, False])
def test_the_set_is_songs_of_known_stems(
    tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    audio = {name: np.full((2, 100), 0.1, np.float32) for name in NAMES}
    monkeypatch.setattr(example, "recorded_sources", lambda: audio if recorded else None)
    monkeypatch.setattr(example, "SECONDS", 1.0)
    done = tfx("data", "example", "-o", tmp_path / "songs")
    assert done.code == 0, done.err
    songs = find_songs(tmp_path / "songs")
    assert len(songs) == len(SYNTHETIC) + recorded
    for song in songs:
        signals = {name: soundfile.read(path)[0] for name, (path, _) in song.sources.items()}
        assert signals.keys() == {"mixture", *NAMES}
        assert np.abs(signals["mixture"]).max() == pytest.approx(PEAK, abs=1e-4)
        parts = np.sum([signals[name] for name in NAMES], axis=0)
        np.testing.assert_allclose(signals["mixture"], parts, atol=1e-6)  # float32 sums of four
    again = tfx("data", "example", "-o", tmp_path / "songs")
    assert again.code != 0
    assert "--force" in again.err
    assert tfx("data", "example", "-o", tmp_path / "songs", "--force").code == 0
