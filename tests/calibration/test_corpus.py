"""What INT8 ranges are taken from: which chunks are drawn, and the file that holds them."""

from __future__ import annotations

import json
import math
import os
import shutil
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tfswa.calibration import gather as gathering
from tfswa.calibration.corpus import STRATA, Chunk, Corpus, open_corpus
from tfswa.calibration.gather import classify, gather, shares
from tfswa.runtime.errors import AudioError, BundleError, OutputExists, UsageError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.parity.corpus import adversaries
from tfswa.runtime.songs.finding import STEM_FILE_STREAMS

Audio = NDArray[np.float32]

RATE, LENGTH = 8000, 1920  # Hz; samples of a chunk: 15 hops
SPEC = ModelSpec(
    "none", ("vocals", "accompaniment"), stft=StftSpec(512, 128, RATE), chunk=ChunkSpec(16, 2, 2, 8)
)
FOUR = replace(SPEC, stems=("drums", "bass", "other", "vocals"), unseen_stem="other")


def noise(chunks: float, seed: int, level_db: float = -23.0) -> Audio:
    """White noise of a level, clipped nowhere."""
    samples = np.random.default_rng(seed).uniform(-1, 1, (2, int(chunks * LENGTH)))
    return (samples * math.sqrt(3) * 10 ** (level_db / 20)).astype(np.float32)


def put(path: Path, audio: Audio, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, rate, subtype="FLOAT", format="WAV")
    return path


def song(folder: Path, chunks: float, seed: int, *, vocal: float = 0.5) -> Path:
    """A song of known stems; ``vocal`` is the share of its chunks, from the start, that have vocals."""
    vocals = noise(chunks, seed, -26)
    vocals[:, int(chunks * vocal) * LENGTH :] = 0
    put(folder / "vocals.wav", vocals)
    put(folder / "accompaniment.wav", noise(chunks, seed + 1000, -26))
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Six songs of 12 chunks; the stems of all are known."""
    root = tmp_path / "library"
    for number in range(6):
        song(root / f"song {number}", 12, number)
    return root


def take(root: Path | Sequence[Path], to: Path, spec: ModelSpec = SPEC, **options: Any) -> Corpus:
    return gather([root] if isinstance(root, Path) else root, spec, to / "calibration.npz", **options)


def songs_of(chunks: Iterator[Chunk]) -> set[str]:
    return {chunk.name.rpartition(" @ ")[0] for chunk in chunks if chunk.stratum != "difficult"}


def indexed(made: Corpus) -> dict[str, Any]:
    with zipfile.ZipFile(made.path) as archive:
        return dict(json.loads(archive.read("corpus.json")))


class TestStrata:
    @pytest.mark.parametrize(
        ("level_db", "stratum"),
        [
            *[(-math.inf, "silent"), (-61, "silent"), (-59, "quiet"), (-41, "quiet"), (-39, "music")],
            *[(-15, "music"), (-13, "loud")],
        ],
    )
    def test_levels(self, level_db: float, stratum: str) -> None:
        assert classify(noise(1, 0, level_db), {}, RATE) == (stratum, "music")

    def test_three_successive_samples_at_full_scale_are_clipped(self) -> None:
        audio = noise(1, 0, -20)
        audio[0, [10, 12, 14]] = 1.0
        assert classify(audio, {}, RATE)[0] == "music"
        audio[0, 10:13] = -1.0
        assert classify(audio, {}, RATE)[0] == "clipped"

    def test_few_clipped_samples_in_many_are_not_much(self) -> None:
        audio = np.tile(noise(1, 0, -20), (1, 100))
        audio[0, 10:13] = 1.0
        assert classify(audio, {}, RATE)[0] == "music"

    @pytest.mark.parametrize("floor_db", [-math.inf, -66, -63])
    def test_sound_in_less_than_half_of_the_frames_is_sparse(self, floor_db: float) -> None:
        audio = noise(1, 0, -20)
        audio[:, int(0.55 * LENGTH) :] = noise(1, 1, floor_db)[:, int(0.55 * LENGTH) :]
        assert classify(audio, {}, RATE)[0] == "music"
        audio[:, int(0.4 * LENGTH) :] = noise(1, 1, floor_db)[:, int(0.4 * LENGTH) :]
        assert classify(audio, {}, RATE)[0] == "sparse"

    def test_vocals_have_a_twentieth_of_the_energy(self) -> None:
        rest = noise(1, 0)
        for gain, voice in ((0.0, "no vocal"), (0.2, "no vocal"), (0.25, "vocal"), (1.0, "vocal")):
            stems = {"vocals": noise(1, 1) * np.float32(gain), "accompaniment": rest}
            assert classify(rest + stems["vocals"], stems, RATE) == (voice, voice)

    def test_what_may_hide_vocals_leaves_the_question_open(self) -> None:
        sources = {"drums": noise(1, 0), "accompaniment": noise(1, 1)}
        assert classify(sources["drums"], sources, RATE)[1] == "music"
        assert classify(sources["drums"], {"drums": sources["drums"]}, RATE)[1] == "no vocal"

    def test_the_voice_of_a_loud_chunk_is_known(self) -> None:
        stems = {"vocals": noise(1, 1, -9), "accompaniment": noise(1, 0, -20)}
        assert classify(sum(stems.values(), np.zeros((2, 1), np.float32)), stems, RATE) == ("loud", "vocal")


class TestShares:
    def test_who_has_few_gives_all(self) -> None:
        assert shares(10, {"a": 1, "b": 100, "c": 100}) == {"a": 1, "b": 5, "c": 4}
        assert shares(3, {"a": 0, "b": 1}) == {"a": 0, "b": 1}
        assert shares(0, {"a": 1}) == {"a": 0}

    @given(st.integers(0, 100), st.dictionaries(st.text(max_size=2), st.integers(0, 40), max_size=6))
    def test_are_even(self, total: int, available: dict[str, int]) -> None:
        given_ = shares(total, available)
        assert sum(given_.values()) == min(total, sum(available.values()))
        most = max(given_.values(), default=0)
        for name, count in given_.items():
            assert count == available[name] or most - 1 <= count <= most


class TestCalibration:
    def test_is_balanced_over_the_strata_that_there_are(self, tmp_path: Path) -> None:
        kinds = [noise(4, 1, -70), noise(10, 2, -50), noise(20, 3, -10), noise(50, 4, -25), noise(1, 5, 3)]
        mixed = put(tmp_path / "mixed.wav", np.clip(np.concatenate(kinds, axis=1), -1, 1))
        # Its stems are known, so that it is the one that is held out.
        known = song(tmp_path / "known", 8, 1)
        made = take([mixed, known], tmp_path, chunks=32, difficult=0.25)
        found = {"vocal": 4, "no vocal": 4, "music": 50, "loud": 20, "quiet": 10, "clipped": 1, "silent": 4}
        assert made.found == found
        right = {"music": 7, "loud": 6, "quiet": 6, "clipped": 1, "silent": 4, "difficult": 8}
        assert made.strata == right
        assert len(made) == 32
        strata = [chunk.stratum for chunk in made.calibration()]
        assert strata == [stratum for stratum, count in right.items() for _ in range(count)]
        assert list(right) == sorted(right, key=STRATA.index)

    def test_comes_evenly_from_songs(self, tmp_path: Path) -> None:
        for number, chunks in enumerate((60, 8, 8, 3)):
            put(tmp_path / "in" / f"{number}.wav", noise(chunks, number))
        known = song(tmp_path / "known", 8, 9)
        made = take([tmp_path / "in", known], tmp_path, chunks=20, difficult=0)
        per_song = Counter(chunk.name.split(" @ ")[0] for chunk in made.calibration())
        assert sorted(per_song.values()) == [3, 5, 6, 6]

    def test_chunks_are_the_songs(self, library: Path, tmp_path: Path) -> None:
        made = take(library, tmp_path, chunks=20, difficult=0)
        for chunk in made.calibration():
            name, start = chunk.name.split(" @ ")
            place = round(float(start.removesuffix(" s")) * RATE / LENGTH) * LENGTH
            parts = [
                soundfile.read(library / name / f"{stem}.wav", dtype="float32")[0] for stem in SPEC.stems
            ]
            right = (parts[0] + parts[1])[place : place + LENGTH].T
            assert chunk.mixture.dtype == np.float32
            np.testing.assert_array_equal(chunk.mixture, right.astype(np.float16).astype(np.float32))
            assert chunk.stems == {}
        index = indexed(made)
        starts = {entry["start_s"] for entry in index["calibration"]}
        assert starts <= {number * LENGTH / RATE for number in range(12)}

    def test_digital_silence_counts_once(self, tmp_path: Path) -> None:
        audio = np.concatenate([noise(9, 0), np.zeros((2, 20 * LENGTH), np.float32)], axis=1)
        made = take(put(tmp_path / "a.wav", audio), tmp_path, difficult=0)
        assert made.strata["silent"] == 1

    def test_difficult_signals_take_their_share(self, library: Path, tmp_path: Path) -> None:
        made = take(library, tmp_path, chunks=32)
        assert made.strata["difficult"] == 4
        names = [chunk.name for chunk in made.calibration() if chunk.stratum == "difficult"]
        assert names == [item.name for item in adversaries(SPEC)][:4]
        assert names[:2] == ["silence", "square wave of full scale"]
        square = next(chunk.mixture for chunk in made.calibration() if chunk.name == names[1])
        assert not square[:, : SPEC.context_samples].any()  # as the runtime's first chunk has it
        kept = SPEC.chunk_samples - SPEC.context_samples
        assert np.abs(square[:, SPEC.context_samples : kept]).min() == 1
        assert not square[:, kept:].any()

    def test_all_can_be_difficult_and_there_are_so_many(self, library: Path, tmp_path: Path) -> None:
        exist = len(adversaries(SPEC))
        assert take(library, tmp_path, chunks=8, difficult=1).strata == {"difficult": 8}
        made = take(library, tmp_path, chunks=exist + 10, difficult=1, force=True)
        assert made.strata["difficult"] == exist
        assert len(made) == exist + 10

    def test_short_audio_gives_fewer_in_the_same_proportion(self, tmp_path: Path) -> None:
        lines: list[str] = []
        path = put(tmp_path / "a.wav", noise(30, 0))
        made = take(path, tmp_path, chunks=500, held_out=50, difficult=0.25, report=lines.append)
        assert made.strata == {"music": 24, "difficult": 8}
        assert "calibration: 500 chunks were asked for, the audio gives 32" in lines
        assert "held out: 50 chunks were asked for, the audio gives 6" in lines


class TestHeldOut:
    def test_songs_that_calibrate_nothing(self, library: Path, tmp_path: Path) -> None:
        made = take(library, tmp_path, chunks=100, held_out=100)
        measured, calibrated = songs_of(made.held_out()), songs_of(made.calibration())
        assert len(measured) == 1
        assert len(calibrated) == 5
        assert measured.isdisjoint(calibrated)
        assert made.held_out_count == len(list(made.held_out())) == 12
        assert set(made.sources) == measured | calibrated

    @pytest.mark.parametrize(("songs", "held"), [(2, 1), (3, 1), (7, 1), (8, 2), (10, 2)])
    def test_one_song_in_five(self, tmp_path: Path, songs: int, held: int) -> None:
        for number in range(songs):
            put(tmp_path / "in" / f"{number}.wav", noise(4, number))
        made = take(tmp_path / "in", tmp_path, chunks=100, held_out=100)
        assert len(songs_of(made.held_out())) == held
        assert len(songs_of(made.calibration())) == songs - held

    def test_stems_sum_to_the_mixture(self, library: Path, tmp_path: Path) -> None:
        for chunk in take(library, tmp_path, chunks=8).held_out():
            assert list(chunk.stems) == list(SPEC.stems)
            assert all(stem.dtype == np.float32 for stem in chunk.stems.values())
            np.testing.assert_allclose(sum(chunk.stems.values()), chunk.mixture, atol=1e-7)

    def test_vocals_and_none_in_equal_parts(self, tmp_path: Path) -> None:
        made = take(song(tmp_path / "song", 100, 0, vocal=0.9), tmp_path, chunks=8, held_out=8)
        assert made.held_out_strata["vocal"] >= 4
        library = [song(tmp_path / f"song {n}", 40, n, vocal=0.2) for n in range(3)]
        made = take(library, tmp_path, chunks=8, held_out=8, force=True)
        assert made.held_out_strata == {"vocal": 4, "no vocal": 4}

    @pytest.mark.parametrize("seed", range(4))
    def test_songs_of_known_stems_and_with_vocals_first(self, tmp_path: Path, seed: int) -> None:
        for number in range(9):
            put(tmp_path / "in" / f"{number}.wav", noise(4, number))
        paths = [song(tmp_path / name, 4, 50 + n, vocal=n) for n, name in enumerate(("without", "with"))]
        made = take([tmp_path / "in", paths[0]], tmp_path, seed=seed)
        assert songs_of(made.held_out()) == {"without"}  # never beside a song whose stems are unknown
        made = take([put(tmp_path / "in" / "0.wav", noise(4, 0)), *paths], tmp_path, seed=seed, force=True)
        assert songs_of(made.held_out()) == {"with"}

    @pytest.mark.parametrize("seed", range(4))
    def test_is_never_silent_and_silent_songs_do_not_count(self, tmp_path: Path, seed: int) -> None:
        sounding = np.concatenate([noise(6, 0), noise(6, 1, -80)], axis=1)
        put(tmp_path / "in" / "a.wav", sounding)
        put(tmp_path / "in" / "b.wav", noise(12, 2, -90))
        made = take(tmp_path / "in", tmp_path, seed=seed, difficult=0)
        held = made.held_out_strata["music"]
        assert made.held_out_strata == {"music": held}
        assert made.strata == {"music": 6 - held, "silent": 18}
        assert songs_of(made.held_out()) == {"a.wav"}

    @pytest.mark.parametrize("chunks", [2, 3, 4, 5, 6, 19, 41, 100])
    def test_of_one_song_regions_that_calibrate_nothing(self, tmp_path: Path, chunks: int) -> None:
        made = take(put(tmp_path / "a.wav", noise(chunks + 0.5, 0)), tmp_path, chunks=200, held_out=200)
        index = indexed(made)
        starts = [
            [round(entry["start_s"] * RATE) for entry in index[part] if "start_s" in entry]
            for part in ("calibration", "held_out")
        ]
        assert all(starts)
        assert sorted(starts[0] + starts[1]) == [number * LENGTH for number in range(chunks)]
        assert abs(len(starts[1]) - chunks / 5) < 1 + chunks / 20
        if chunks == 100:  # neighbors stay together
            assert sum(b - a > LENGTH for a, b in zip(starts[1], starts[1][1:], strict=False)) == 3


class TestFiles:
    def test_a_second_run_gives_the_same_bytes_in_any_order_and_place(
        self, library: Path, tmp_path: Path
    ) -> None:
        paths = sorted(library.iterdir())
        first = take(library, tmp_path, chunks=16, seed=3)
        moved = tmp_path / "elsewhere"
        shutil.copytree(library, moved / "library")
        for order in (
            paths,
            paths[::-1],
            [library, *paths[2:4]],
            [moved / "library"],
            [library, moved / "library"],
        ):
            again = take(order, tmp_path / "more" / "folders", chunks=16, seed=3, force=True)
            assert again.path.read_bytes() == first.path.read_bytes()
            assert again.sha256 == first.sha256
        other = take(library, tmp_path, chunks=16, seed=4, force=True)
        assert other.sha256 != first.sha256
        assert (first.seed, other.seed) == (3, 4)
        assert str(tmp_path) not in json.dumps(indexed(other))

    def test_numpy_reads_it_without_pickle(self, library: Path, tmp_path: Path) -> None:
        made = take(library, tmp_path, chunks=8, held_out=3)
        with np.load(made.path, allow_pickle=False) as archive:
            mixtures = [archive[f"calibration/{number:04}"] for number in range(8)]
            for mixture, chunk in zip(mixtures, made.calibration(), strict=True):
                assert mixture.dtype == np.float16
                np.testing.assert_array_equal(mixture, chunk.mixture)
            for number, chunk in enumerate(made.held_out()):
                assert archive[f"held_out/{number:04}"].dtype == np.float32
                np.testing.assert_array_equal(archive[f"held_out/{number:04}/vocals"], chunk.stems["vocals"])
        index = indexed(made)
        assert index["stft"] == {"n_fft": 512, "hop": 128, "sample_rate": RATE, "scale": 1 / 32}
        assert (index["sample_rate"], index["channels"], index["chunk_samples"]) == (RATE, 2, LENGTH)
        assert index["songs"][0]["files"] == ["accompaniment.wav", "vocals.wav"]

    def test_rate_and_channels_are_the_models(self, tmp_path: Path) -> None:
        put(tmp_path / "in" / "a.wav", noise(20, 0)[:1], rate=11_025)
        put(tmp_path / "in" / "b.wav", noise(20, 1), rate=48_000)
        made = take(tmp_path / "in", tmp_path, replace(SPEC, channels=1), difficult=0.5)
        assert made.found == {"music": 14 + 3}
        assert {chunk.mixture.shape for chunk in made.calibration()} == {(1, LENGTH)}

    def test_a_shorter_stem_is_followed_by_silence(self, tmp_path: Path) -> None:
        put(tmp_path / "song" / "vocals.wav", noise(1.5, 0))
        for number, name in enumerate(("drums", "bass", "other")):
            put(tmp_path / "song" / f"{name}.wav", noise(5 - number, number))
        made = take(tmp_path / "song", tmp_path, FOUR, held_out=1, difficult=0)
        assert made.found == {"vocal": 2, "no vocal": 3}
        (chunk,) = made.held_out()
        assert list(chunk.stems) == list(FOUR.stems)
        np.testing.assert_allclose(sum(chunk.stems.values()), chunk.mixture, atol=1e-7)

    def test_a_stem_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.stem.mp4"
        with av.open(path, "w", format="mp4") as container:
            streams = [container.add_stream("aac", rate=44_100, layout="stereo") for _ in STEM_FILE_STREAMS]
            for number, stream in enumerate(streams):
                for start in range(0, 44_100, 1024):
                    samples = noise(1, number * 100 + start)[:, :1024]
                    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
                    frame.sample_rate, frame.pts = 44_100, start
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        made = take(path, tmp_path)
        assert made.sources == ("a",)
        assert made.found == {"vocal": 4}
        for chunk in made.held_out():
            np.testing.assert_allclose(sum(chunk.stems.values()), chunk.mixture, atol=1e-6)

    def test_a_video_is_its_sound(self, tmp_path: Path) -> None:
        path = tmp_path / "clip.mp4"
        with av.open(path, "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(noise(8, 0)[:1], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
        made = take(path, tmp_path)
        assert made.found == {"music": 8}
        assert next(made.held_out()).stems == {}

    @pytest.mark.parametrize("lacks", ["accompaniment", "vocals"])
    def test_where_a_stem_is_missing_the_mixture_is_taken(self, tmp_path: Path, lacks: str) -> None:
        mixture = noise(8, 0)
        put(tmp_path / "song" / "mixture.wav", mixture)
        put(tmp_path / "song" / ("drums.wav" if lacks == "vocals" else "vocals.wav"), noise(8, 1))
        made = take(tmp_path / "song", tmp_path, held_out=1, difficult=0)
        assert made.found == {"music": 8}
        (chunk,) = made.held_out()
        start = round(float(chunk.name.split(" @ ")[1].removesuffix(" s")) * RATE / LENGTH) * LENGTH
        np.testing.assert_array_equal(chunk.mixture, mixture[:, start : start + LENGTH])

    def test_a_file_that_cannot_be_used_is_reported_and_left_out(self, library: Path, tmp_path: Path) -> None:
        (library / "song 0" / "vocals.wav").write_bytes(b"no audio at all")
        (library / "song 1" / "vocals.wav").unlink()
        put(library / "song 2" / "vocals.wav", noise(4, 0) * 32_768)
        lines: list[str] = []
        made = take(library, tmp_path, report=lines.append)
        assert made.found == {"vocal": 18, "no vocal": 18}
        out = [line for line in lines if line.startswith("left out: ")]
        assert [needle in line for needle, line in zip(("vocals.wav", "song 1", "song 2"), out, strict=True)]
        assert "full scale is 1" in out[2]
        assert "song 3: 2.9 s, chunks: 12" in lines

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_song(self, tmp_path: Path) -> None:
        rate = 1000
        spec = replace(SPEC, stft=StftSpec(512, 128, rate), chunk=ChunkSpec(64, 2, 2, 8))
        block = np.random.default_rng(0).integers(-9000, 9000, 60 * rate, np.int16)
        with soundfile.SoundFile(tmp_path / "long.wav", "w", rate, 1) as file:
            for minute in range(8 * 60):
                file.write(np.roll(block, minute))
        tracemalloc.start()
        try:
            made = take(tmp_path / "long.wav", tmp_path, spec, chunks=8, held_out=2)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert made.found == {"music": 8 * 3600 * rate // spec.chunk_samples}
        assert peak < 8e6  # the song is 230 MB in float32, stereo


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_text(path: Path) -> None:
    path.write_text("not a zip file")


def damage_index(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("corpus.json", '{"format": "tfx-calibration", "version": 1, "calibration": 3}')


def damage_other(path: Path) -> None:
    np.savez(path, calibration=np.zeros(3))


def rewrite(path: Path, **replaced: bytes) -> None:
    """Replace members, checksums and all."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **replaced}.items():
            archive.writestr(name, content)


class TestOpening:
    def test_gives_what_gather_gave(self, library: Path, tmp_path: Path) -> None:
        made = take(library, tmp_path, chunks=8)
        opened = open_corpus(made.path, SPEC)
        assert (opened.sha256, opened.strata, opened.sources) == (made.sha256, made.strata, made.sources)
        for part in ("calibration", "held_out"):
            names = [[chunk.name for chunk in getattr(one, part)()] for one in (made, opened)]
            assert names[0] == names[1]

    @pytest.mark.parametrize(
        ("spec", "key"),
        [
            (replace(SPEC, stft=StftSpec(512, 128, 16_000)), "sample_rate"),
            (replace(SPEC, channels=1), "channels"),
            (replace(SPEC, chunk=ChunkSpec(24, 2, 2, 8)), "chunk_samples"),
            (FOUR, "stems"),
        ],
    )
    def test_another_models_is_refused(
        self, library: Path, tmp_path: Path, spec: ModelSpec, key: str
    ) -> None:
        made = take(library, tmp_path, chunks=8)
        with pytest.raises(UsageError, match=rf"gathered for {key} .*, the model has .*: gather another"):
            open_corpus(made.path, spec)

    def test_the_order_of_stems_is_the_models(self, library: Path, tmp_path: Path) -> None:
        made = take(library, tmp_path, chunks=8)
        turned = open_corpus(made.path, replace(SPEC, stems=SPEC.stems[::-1]))
        assert list(next(turned.held_out()).stems) == list(SPEC.stems[::-1])

    @pytest.mark.parametrize("harm", [damage_flip, damage_cut, damage_text, damage_index, damage_other])
    def test_a_damaged_one_is_refused(
        self, library: Path, tmp_path: Path, harm: Callable[[Path], None]
    ) -> None:
        made = take(library, tmp_path, chunks=8)
        harm(made.path)
        with pytest.raises(
            BundleError, match=r"is damaged, or no calibration corpus \(.+\): gather it again"
        ):
            open_corpus(made.path, SPEC)

    def test_damage_after_opening_is_noticed(self, library: Path, tmp_path: Path) -> None:
        made = take(library, tmp_path, chunks=8)
        first = made.calibration()
        next(first)
        damage_text(made.path)
        with pytest.raises(BundleError, match="damaged"):
            list(made.held_out())
        first.close()  # type: ignore[attr-defined]

    def test_what_declares_more_than_it_may_is_refused_before_it_is_unpacked(
        self, library: Path, tmp_path: Path
    ) -> None:
        made = take(library, tmp_path, chunks=8)
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1000000000000), }"
        header = b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(0x75) + b"\n"
        rewrite(made.path, **{"calibration/0000.npy": header})
        with pytest.raises(BundleError, match="is not finite audio of the shape"):
            list(open_corpus(made.path, SPEC).calibration())
        with zipfile.ZipFile(made.path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb.npy", bytes(200 << 20))
        with pytest.raises(BundleError, match=r"declares \d+ members of \d+ bytes, a file of \d+ bytes may"):
            open_corpus(made.path, SPEC)

    @pytest.mark.parametrize("content", ["shape", "object", "nan"])
    def test_members_that_are_no_audio_are_refused(self, library: Path, tmp_path: Path, content: str) -> None:
        made = take(library, tmp_path, chunks=8)
        array: NDArray[Any] = np.full((2, LENGTH), np.nan, np.float16)
        if content != "nan":
            array = np.zeros((2, 5), np.float16) if content == "shape" else np.array([{}], object)
        with (tmp_path / "x.npy").open("wb") as stream:
            np.lib.format.write_array(stream, array, allow_pickle=True)
        rewrite(made.path, **{"calibration/0000.npy": (tmp_path / "x.npy").read_bytes()})
        with pytest.raises(BundleError, match="damaged"):
            list(open_corpus(made.path, SPEC).calibration())

    def test_a_missing_one(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"no\.npz is not there: gather it"):
            open_corpus(tmp_path / "no.npz", SPEC)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path: Path) -> Iterator[None]:
        yield
        assert not list(tmp_path.glob("**/*calibration.npz*"))

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"chunks": 0}, "0 chunks are too few"),
            ({"held_out": 0}, "0 held-out chunks are too few"),
            ({"held_out": -1}, "-1 held-out chunks are too few"),
            ({"difficult": -0.1}, "-0.1 is not within 0 and 1"),
            ({"difficult": 1.1}, "1.1 is not within 0 and 1"),
            ({"difficult": math.nan}, "nan is not within 0 and 1"),
            ({"seed": -1}, "seed -1 is below 0"),
        ],
    )
    def test_nonsense(self, library: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            take(library, tmp_path, **options)

    def test_no_paths(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no audio is named"):
            take([], tmp_path)

    def test_no_audio(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        with pytest.raises(AudioError, match="holds no audio"):
            take(tmp_path / "in", tmp_path)
        with pytest.raises(AudioError, match="no such file"):
            take(tmp_path / "nowhere", tmp_path)

    def test_none_that_decodes(self, tmp_path: Path) -> None:
        for name in ("a.wav", "b.wav"):
            (tmp_path / name).write_bytes(b"no audio at all")
        with pytest.raises(AudioError, match=r"a\.wav cannot be decoded .*the same goes for 1 more"):
            take([tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path)
        with pytest.raises(AudioError, match=r"b\.wav cannot be decoded .*another copy$"):
            take(tmp_path / "b.wav", tmp_path)

    def test_too_short(self, tmp_path: Path) -> None:
        for number in range(3):
            put(tmp_path / "in" / f"{number}.wav", noise(0.9 - number / 10, number))
        with pytest.raises(AudioError, match=r"too short: the longest song has 0\.22 s, .* has 0\.24 s"):
            take(tmp_path / "in", tmp_path)

    def test_one_chunk_of_sound(self, tmp_path: Path) -> None:
        put(tmp_path / "in" / "a.wav", noise(1, 0))
        put(tmp_path / "in" / "b.wav", noise(3, 1, -70))
        with pytest.raises(AudioError, match=r"too short: it holds 0\.24 s of sound, needed are 0\.48 s"):
            take(tmp_path / "in", tmp_path)

    def test_silence(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"all 0\.7 s of audio are silent, sound begins at -60 dBFS"):
            take(put(tmp_path / "a.wav", noise(3, 0, -70)), tmp_path)

    def test_a_song_without_all_stems_nor_mixture(self, tmp_path: Path) -> None:
        put(tmp_path / "song" / "vocals.wav", noise(4, 0))
        put(tmp_path / "song" / "drums.wav", noise(4, 0))
        with pytest.raises(AudioError, match="song lacks bass, other"):
            take(tmp_path / "song", tmp_path, FOUR)
        spec = replace(SPEC, stems=("vocals", "drums", "accompaniment"))
        with pytest.raises(AudioError, match="song lacks accompaniment, though it holds drums, vocals"):
            take(tmp_path / "song", tmp_path, spec)

    @pytest.mark.parametrize("name", ["calibration.wav", "calibration"])
    def test_an_output_that_is_no_npz(self, library: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match=r"a name that ends in \.npz"):
            gather([library], SPEC, tmp_path / name)

    def test_an_output_that_is_a_folder(self, library: Path, tmp_path: Path) -> None:
        (tmp_path / "x.npz").mkdir()
        with pytest.raises(UsageError, match="is a folder"):
            gather([library], SPEC, tmp_path / "x.npz", force=True)

    def test_an_output_that_cannot_be_written(self, library: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match=r"cannot write .*; choose another place"):
            take(library, tmp_path / "file")

    def test_an_output_that_is_there(self, library: Path, tmp_path: Path) -> None:
        (tmp_path / "x.npz").write_text("precious")
        with pytest.raises(OutputExists, match="is there already: replace it with --force"):
            gather([library], SPEC, tmp_path / "x.npz")
        assert (tmp_path / "x.npz").read_text() == "precious"
        assert len(gather([library], SPEC, tmp_path / "x.npz", chunks=4, force=True)) == 4

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_nothing_is_left_of_a_run_that_was_cut_off(
        self, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        writes = iter(range(100))
        inner = np.lib.format.write_array

        def stopping(*arguments: Any, **options: Any) -> None:
            if next(writes) == 3:
                raise error
            inner(*arguments, **options)

        monkeypatch.setattr(np.lib.format, "write_array", stopping)
        with pytest.raises(error):
            take(library, tmp_path / "made")
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("length", [12, 3])
    def test_a_song_that_changes_between_the_passes(
        self, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
    ) -> None:
        inner = gathering._split

        def changing(*arguments: Any) -> Any:
            for number in range(6):
                song(library / f"song {number}", length, 77 + number)
            return inner(*arguments)

        monkeypatch.setattr(gathering, "_split", changing)
        with pytest.raises(AudioError, match=r"song \d changed since it was read first"):
            take(library, tmp_path)


def test_damage_in_a_song_is_told_once(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = library / "song 0" / "vocals.wav"
    path.write_bytes(path.read_bytes()[:-1000])
    take(library, tmp_path)
    damage = [
        record.getMessage() for record in caplog.records if "the rest is missing" in record.getMessage()
    ]
    assert len(damage) == 1
    assert damage[0].startswith(f"{path}: ")
