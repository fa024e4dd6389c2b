"""A model in a backend: against the plain float64 reference, file against memory, and every way to fail."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from planes import Tensors, planes_session
from system_calls import alone

from tfswa.runtime.audio.reading import open_audio
from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import AudioError, NonFiniteError, OutputExists, TfxError, UsageError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream import separator as separator_module
from tfswa.runtime.stream.files import FileResult
from tfswa.runtime.stream.separator import Separator

Audio = NDArray[np.float32]

RATE = 8000
STFT = StftSpec(n_fft=512, hop=128, sample_rate=RATE)
CHUNK = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
STEMS = ("vocals", "drums", "other")
SHARES = (0.5, 0.25, 0.25)  # exact in float32
# float32 rounds at 2**-24; a transform, a network and a cross-fade leave about 130 dB of 144.
REFERENCE_DB = 100.0
# Float files hold the samples as they are; one resampling there and back is the codec's business.
SUM_TOLERANCE = 1e-6


def noise(samples: int, channels: int = 2, seed: int = 0) -> Audio:
    return (np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1).astype(np.float32)


def make_model(folder: Path, **options: Any) -> BundleModel:
    """A bundle without a network: sessions here are made by the tests."""
    spec = ModelSpec(family="none", stems=STEMS, stft=STFT, chunk=CHUNK, **options)
    weights = {"w": np.zeros(1, np.float32)}
    return BundleModel("tiny", Bundle.create(folder / "tiny.tfx", spec, weights, force=True))


class Shares:
    """A session that gives each stem its share of the mixture; what it returns may be spoilt."""

    name = "shares"
    artifact = ("model.safetensors", "0" * 64)
    description = "shares 1.0"
    versions: Mapping[str, str] = {"shares": "1.0"}
    reentrant = False

    def __init__(self, spoil: Callable[[NDArray[np.float32], int], NDArray[np.float32]] | None = None):
        self.calls, self.closed = 0, 0
        self._spoil = spoil

    def infer(self, given: Tensors) -> Tensors:
        return planes_session(self._share)(given)

    def _share(self, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        shares = np.array(SHARES, np.float32).reshape(-1, 1, 1, 1)
        out = np.stack([plane * shares for plane in mixture])  # [B, S, 2*C, T, F]
        self.calls += 1
        return out if self._spoil is None else self._spoil(out, self.calls)

    def close(self) -> None:
        self.closed += 1


Use = Callable[..., Separator]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """``use(session, batch=..., **spec)``: a separator around a session made here."""

    def make(session: Shares | None = None, batch: int = 1, **options: Any) -> Separator:
        made = session or Shares()
        monkeypatch.setattr(separator_module, "open_session", lambda *_: made)
        return Separator(make_model(tmp_path / "models", **options), batch=batch)

    return make


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> BundleModel:
    """A tiny network with seeded weights."""
    pytest.importorskip("torch", reason="torch is not installed: the eager network needs it")
    from tfswa.train.backend import new_bundle

    hyper = {
        "dims": [8, 16],
        "depths": [1, 1],
        "decoder_depths": [1],
        "heads": [1, 2],
        "window": 4,
        "fold": 4,
    }
    path = tmp_path_factory.mktemp("network") / "tiny.tfx"
    return BundleModel(str(path), new_bundle("tfswa_lite", path, hyper=hyper, stft=STFT, chunk=CHUNK))


def write_wav(path: Path, audio: Audio, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, audio.T, rate, subtype=subtype)
    return path


def read(path: Path) -> Audio:
    with open_audio(path) as source:
        blocks = [np.zeros((source.channels, 0), np.float32), *source.blocks()]
        return np.concatenate(blocks, axis=1)


def separate(separator: Separator, source: Path, folder: Path, **options: Any) -> FileResult:
    stems = options.pop("stems", separator.spec.stems)
    return separator.separate_file(source, {stem: folder / f"{stem}.wav" for stem in stems}, **options)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


INTERRUPTED = """
import signal, sys
from pathlib import Path
import numpy as np
from tfswa.runtime.audio.encoders import WavEncoder
from tfswa.runtime.stream import separator

class Whole:
    name, artifact, description, versions = "whole", ("model.safetensors", "0" * 64), "whole", {}

    def infer(self, given):
        return {"stems": np.repeat(given["mixture"][:, None], 3, axis=1)}

    def close(self):
        pass

def interrupt(*_):
    print("interrupted")
    raise KeyboardInterrupt

def slow(encoder, block, real=WavEncoder.write, seen=[]):
    if not seen:
        seen.append(True)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    real(encoder, block)

signal.signal(signal.SIGALRM, interrupt)
WavEncoder.write = slow
separator.open_session = lambda *_: Whole()
model, source, folder = sys.argv[1:]
try:
    with separator.Separator(model) as opened:
        opened.separate_file(source, folder)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""


class TestAgainstTheReference:
    @pytest.mark.parametrize("samples", [1, 700, 3 * RATE + 17])
    def test_equals_the_plain_float64_reference(self, network: BundleModel, samples: int) -> None:
        from tfswa.train.reference import TorchReference

        mixture = noise(samples)
        expected = TorchReference(network).separate(mixture)
        with Separator(network, backend="torch") as separator:
            found = separator.separate(mixture)
        assert found.shape == expected.shape
        for stem in range(2):
            snr = snr_db(expected[stem], found[stem])
            assert snr is not None
            assert snr >= REFERENCE_DB

    def test_does_not_depend_on_the_batch(self, network: BundleModel) -> None:
        mixture = noise(2 * RATE + 5)
        outputs = []
        for batch in (1, 2, 3):
            with Separator(network, backend="torch", batch=batch) as separator:
                outputs.append(separator.separate(mixture))
        for other in outputs[1:]:
            # The host's part is equal to the bit; matrix products of another size may round otherwise.
            snr = snr_db(outputs[0], other)
            assert snr is not None
            assert snr >= REFERENCE_DB

    def test_the_host_does_not_depend_on_the_batch_by_a_bit(self, use: Use) -> None:
        mixture = noise(2 * RATE + 5)
        with use(batch=1) as one, use(batch=3) as three:
            np.testing.assert_array_equal(one.separate(mixture), three.separate(mixture))


class TestMemory:
    @pytest.mark.parametrize("samples", [0, 1, 5, 127, 1919, 20_001])
    def test_length_is_kept_and_stems_are_their_shares(self, use: Use, samples: int) -> None:
        mixture = noise(samples)
        with use() as separator:
            stems = separator.separate(mixture)
        assert stems.shape == (3, 2, samples)
        assert stems.dtype == np.float32
        np.testing.assert_allclose(stems.sum(axis=0), mixture, atol=SUM_TOLERANCE)

    def test_a_bad_batch_is_refused(self, use: Use) -> None:
        with pytest.raises(UsageError, match="batch 0"):
            use(batch=0)

    def test_closes_its_session(self, use: Use) -> None:
        session = Shares()
        with use(session):
            assert session.closed == 0
        assert session.closed == 1

    @pytest.mark.parametrize("stem", STEMS)
    def test_the_nyquist_bin_goes_to_its_stem(self, use: Use, stem: str) -> None:
        mixture = np.tile(np.float32([0.5, -0.5]), (2, 4000))  # all of it at the Nyquist frequency
        with use(unseen_stem=stem) as separator:
            stems = separator.separate(mixture)
        middle = np.abs(stems[..., 1000:7000]).max(axis=(1, 2))
        strongest = STEMS[int(middle.argmax())]
        assert strongest == stem
        np.testing.assert_allclose(stems.sum(axis=0), mixture, atol=SUM_TOLERANCE)

    def test_the_residual_stem_makes_the_sum_exact(self, use: Use) -> None:
        def louder(out: NDArray[np.float32], _: int) -> NDArray[np.float32]:
            return out * np.float32(1.7)

        mixture = noise(12_345)
        with use(Shares(louder), residual_stem="drums") as separator:
            stems = separator.separate(mixture)
        np.testing.assert_allclose(stems.sum(axis=0), mixture, atol=SUM_TOLERANCE)
        # The others are left alone: 1.7 times their share, here without the Nyquist bin.
        snr = snr_db(0.85 * mixture, stems[0])
        assert snr is not None
        assert snr > 15.0

    def test_without_it_the_network_has_the_last_word(self, use: Use) -> None:
        mixture = noise(12_345)
        with use(Shares(lambda out, _: out * np.float32(1.7))) as separator:
            assert np.abs(separator.separate(mixture).sum(axis=0) - mixture).max() > 0.05


class TestFiles:
    @pytest.mark.parametrize("samples", [0, 1, 5, 4001, 100_003])
    def test_a_file_gives_what_memory_gives_to_the_bit(
        self, network: BundleModel, tmp_path: Path, samples: int
    ) -> None:
        mixture = noise(samples)
        source = write_wav(tmp_path / "song.wav", mixture)
        with Separator(network, backend="torch") as separator:
            expected = separator.separate(mixture)
            result = separate(separator, source, tmp_path / "out")
        for index, stem in enumerate(separator.spec.stems):
            np.testing.assert_array_equal(read(result.written.paths[stem]), expected[index])
        assert result.audio_seconds == samples / RATE
        assert result.written.samples == samples

    @pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
    @pytest.mark.parametrize("samples", [0, 1, 5, 9999])
    def test_length_and_rate_are_the_inputs(self, use: Use, tmp_path: Path, rate: int, samples: int) -> None:
        source = write_wav(tmp_path / "song.wav", noise(samples), rate)
        with use() as separator:
            separate(separator, source, tmp_path / "out")
        for stem in STEMS:
            info = soundfile.info(tmp_path / "out" / f"{stem}.wav")
            assert (info.frames, info.samplerate, info.channels) == (samples, rate, 2)

    def test_a_resampled_song_is_the_song(self, use: Use, tmp_path: Path) -> None:
        time = np.arange(30_000) / 22_050
        song = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 1000 * time)]) * 0.5
        source = write_wav(tmp_path / "song.wav", song.astype(np.float32), 22_050)
        with use() as separator:
            separate(separator, source, tmp_path / "out")
        vocals = read(tmp_path / "out" / "vocals.wav")
        snr = snr_db(0.5 * song[:, 500:-500], vocals[:, 500:-500])
        assert snr is not None
        assert snr > 90.0  # soxr HQ, twice

    def test_mono_stays_mono(self, use: Use, tmp_path: Path) -> None:
        song = noise(5001, channels=1)
        with use() as separator:
            separate(separator, write_wav(tmp_path / "song.wav", song), tmp_path / "out")
        stems = [read(tmp_path / "out" / f"{stem}.wav") for stem in STEMS]
        assert stems[0].shape == song.shape
        np.testing.assert_allclose(np.sum(stems, axis=0), song, atol=SUM_TOLERANCE)

    def test_six_channels_become_stereo(self, use: Use, tmp_path: Path) -> None:
        song = np.zeros((6, 4000), np.float32)
        song[0], song[1] = noise(4000, channels=2)
        with use() as separator:
            separate(separator, write_wav(tmp_path / "song.wav", song), tmp_path / "out")
        stems = [read(tmp_path / "out" / f"{stem}.wav") for stem in STEMS]
        np.testing.assert_allclose(np.sum(stems, axis=0), song[:2], atol=SUM_TOLERANCE)

    @pytest.mark.filterwarnings("default")
    def test_an_mp3_that_is_cut_gives_what_is_left(self, use: Use, tmp_path: Path) -> None:
        whole = tmp_path / "whole.mp3"
        soundfile.write(whole, noise(10 * 44_100).T, 44_100, format="MP3")
        cut = tmp_path / "cut.mp3"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with use() as separator:
            result = separate(separator, cut, tmp_path / "out")
        assert 4.0 < result.audio_seconds < 6.0
        assert soundfile.info(tmp_path / "out" / "vocals.wav").frames == round(result.audio_seconds * 44_100)

    def test_some_stems_only(self, use: Use, tmp_path: Path) -> None:
        song = noise(4000)
        source = write_wav(tmp_path / "song.wav", song)
        with use() as separator:
            result = separate(separator, source, tmp_path / "out", stems=("other", "vocals"))
        assert everything(tmp_path / "out") == ["other.wav", "vocals.wav"]
        # Each file holds its own stem, also where the order is not the model's.
        np.testing.assert_allclose(read(result.written.paths["vocals"]), 0.5 * song, atol=0.02)
        np.testing.assert_allclose(
            2 * read(result.written.paths["other"]), read(result.written.paths["vocals"]), atol=0.05
        )

    def test_an_unknown_stem_is_named_before_anything_is_done(self, use: Use, tmp_path: Path) -> None:
        source = write_wav(tmp_path / "song.wav", noise(100))
        with (
            use() as separator,
            pytest.raises(UsageError, match="no stem 'bass': it has vocals, drums"),
        ):
            separate(separator, source, tmp_path / "out", stems=("vocals", "bass"))
        assert everything(tmp_path / "out") == []

    def test_progress_rises_to_the_end(self, use: Use, tmp_path: Path) -> None:
        source = write_wav(tmp_path / "song.wav", noise(300_001))
        seen: list[tuple[float, float | None]] = []
        with use() as separator:
            separate(separator, source, tmp_path / "out", progress=lambda *step: seen.append(step))
        done = [step[0] for step in seen]
        assert len(done) > 3
        assert done == sorted(done)
        assert seen[-1] == (300_001 / RATE, 300_001 / RATE)
        assert {step[1] for step in seen} == {300_001 / RATE}

    def test_times_are_measured(self, use: Use, tmp_path: Path) -> None:
        def busy(out: NDArray[np.float32], _: int) -> NDArray[np.float32]:
            for _ in range(20):
                np.sort(out, axis=None)
            return out

        source = write_wav(tmp_path / "song.wav", noise(3 * RATE))
        with use(Shares(busy)) as separator:
            result = separate(separator, source, tmp_path / "out")
        assert 0 < result.host_cpu_seconds < 0.5 * result.cpu_seconds  # the network is not the host's
        assert result.wall_seconds > 0
        assert result.x_realtime == 3.0 / result.wall_seconds


class TestThreads:
    SONGS = tuple(noise(samples, seed=samples) for samples in (9001, 12_345, 16_000, 20_003))

    def together(self, separator: Separator) -> list[Audio]:
        """All songs at once, a thread each, three times over."""
        with ThreadPoolExecutor(len(self.SONGS)) as pool:
            return list(pool.map(separator.separate, self.SONGS * 3))

    def test_give_what_one_gives(self, network: BundleModel) -> None:
        # Equal to the bit: with one thread a call, the same operations run in the same order.
        options = BackendOptions(threads=1)
        with Separator(network, backend="torch", options=options, batch=2) as separator:
            alone = [separator.separate(song) for song in self.SONGS]
            found = self.together(separator)
        for one, other in zip(alone * 3, found, strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_take_turns_in_a_network_that_is_not_reentrant(self, use: Use, reentrant: bool) -> None:
        inside, met = [], threading.Event()

        def count(out: NDArray[np.float32], call: int) -> NDArray[np.float32]:
            inside.append(call)
            if len(inside) > 1:
                met.set()
            elif reentrant:
                met.wait(60)  # for the second, or the test fails
            inside.pop()
            return out

        session = Shares(count)
        session.reentrant = reentrant
        with use(session) as separator:
            found = self.together(separator)
        assert met.is_set() == reentrant
        for song, stems in zip(self.SONGS * 3, found, strict=True):
            np.testing.assert_allclose(stems.sum(axis=0), song, atol=SUM_TOLERANCE)

    def test_a_file_counts_its_own_networks_time(self, use: Use, tmp_path: Path) -> None:
        sources = [write_wav(tmp_path / f"{i}.wav", noise(3 * RATE)) for i in range(4)]
        with use() as separator, ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda path: separate(separator, path, tmp_path / path.stem), sources))
        assert all(result.host_cpu_seconds > 0 for result in results)

    def test_torchs_threads_are_given_back_in_any_order(self, network: BundleModel) -> None:
        import torch

        before = torch.get_num_threads()
        sessions = [
            Separator(network, backend="torch", options=BackendOptions(threads=count)) for count in (1, 2)
        ]
        try:
            for separator, count in zip(sessions, (1, 2), strict=True):
                separator.separate(noise(100))
                assert torch.get_num_threads() == count
        finally:
            for separator in sessions:  # the first opened is the first closed
                separator.close()
        assert torch.get_num_threads() == before


def nan_in_drums(out: NDArray[np.float32], call: int) -> NDArray[np.float32]:
    if call == 3:
        out[0, 1, 0, 5, 7] = np.nan
    return out


def inf_in_drums(out: NDArray[np.float32], call: int) -> NDArray[np.float32]:
    if call == 3:
        out[0, 1, 0, 5, 7] = np.inf
    return out


class TestFailures:
    @pytest.mark.parametrize("spoil", [nan_in_drums, inf_in_drums])
    def test_nan_and_inf_name_chunk_and_stem_and_leave_nothing(
        self, use: Use, tmp_path: Path, spoil: Any
    ) -> None:
        source = write_wav(tmp_path / "song.wav", noise(RATE))
        with use(Shares(spoil)) as separator:
            with pytest.raises(NonFiniteError, match=r"^chunk 2 \(samples .*\) of drums holds NaN or Inf"):
                separate(separator, source, tmp_path / "out" / "deep")
            # The separator is as good as new for the next file.
            separate(separator, source, tmp_path / "again")
        assert everything(tmp_path / "again") == sorted(f"{stem}.wav" for stem in STEMS)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("spoil", [nan_in_drums, inf_in_drums])
    def test_nan_and_inf_are_errors_with_a_residual_stem_too(self, use: Use, spoil: Any) -> None:
        with (
            use(Shares(spoil), residual_stem="other") as separator,
            pytest.raises(NonFiniteError, match=r"chunk 2 .* drums"),
        ):
            separator.separate(noise(RATE))

    @pytest.mark.parametrize(
        "reshape",
        [lambda out, _: out[:, :2], lambda out, _: out[:, :, :, :-1], lambda out, _: out[0]],
        ids=["a stem less", "a frame less", "no batch"],
    )
    def test_a_wrong_shape_names_both(self, use: Use, reshape: Any) -> None:
        with (
            use(Shares(reshape)) as separator,
            pytest.raises(
                TfxError,
                match=r"^shares 1.0 returned shapes {'stems': .*}, the spec says .* \(1, 3, 4, 16, 256\)}$",
            ),
        ):
            separator.separate(noise(100))

    def test_output_that_is_there_is_kept(self, use: Use, tmp_path: Path) -> None:
        source = write_wav(tmp_path / "song.wav", noise(100))
        kept = tmp_path / "vocals.wav"
        kept.write_text("mine")
        with use() as separator:
            with pytest.raises(OutputExists):
                separate(separator, source, tmp_path)
            assert kept.read_text() == "mine"
            separate(separator, source, tmp_path, force=True)
        assert soundfile.info(kept).frames == 100

    def test_a_bad_sample_late_in_the_file_leaves_nothing(self, use: Use, tmp_path: Path) -> None:
        song = noise(40 * RATE)
        song[1, -5] = np.nan
        source = write_wav(tmp_path / "song.wav", song)
        with use() as separator, pytest.raises(AudioError, match="in channel 2 of 2 is nan"):
            separate(separator, source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_full_disk_leaves_nothing(
        self, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tfswa.runtime.audio.encoders import WavEncoder

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(WavEncoder, "write", full)
        source = write_wav(tmp_path / "song.wav", noise(20 * RATE))
        with use() as separator, pytest.raises(AudioError, match="No space left"):
            separate(separator, source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
    def test_leaving_from_the_progress_callback_leaves_nothing(
        self, use: Use, tmp_path: Path, kind: type[BaseException]
    ) -> None:
        seen = []

        def stop(done: float, total: float | None) -> None:
            seen.append(everything(tmp_path / "out"))
            if done > 5:
                raise kind

        source = write_wav(tmp_path / "song.wav", noise(60 * RATE))
        with use() as separator, pytest.raises(kind):
            separate(separator, source, tmp_path / "out" / "deep" / "er", progress=stop)
        assert any("partial" in name for name in seen[0])  # it was really writing
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_was_there_is_left_as_it_was(self, use: Use, tmp_path: Path) -> None:
        place = tmp_path / "out"
        place.mkdir()
        (place / "notes.txt").write_text("mine")

        def stop(done: float, total: float | None) -> None:
            raise KeyboardInterrupt

        source = write_wav(tmp_path / "song.wav", noise(20 * RATE))
        with use() as separator, pytest.raises(KeyboardInterrupt):
            separate(separator, source, place / "song", progress=stop)
        assert everything(place) == ["notes.txt"]

    def test_ctrl_c_while_the_last_blocks_are_written_leaves_nothing(self, tmp_path: Path) -> None:
        """In a process of its own: an exception in the midst of coverage would leave its lock held."""
        make_model(tmp_path / "models")
        source = write_wav(tmp_path / "song.wav", noise(120 * RATE))
        said = alone(INTERRUPTED, tmp_path / "models" / "tiny.tfx", source, tmp_path / "out")
        assert said.split() == ["interrupted", "KeyboardInterrupt"]
        assert not (tmp_path / "out").exists()


@pytest.fixture(autouse=True)
def nothing_in_the_way(tmp_path: Path) -> Iterator[None]:
    """No hidden leftovers anywhere below the test's folder."""
    yield
    assert [name for name in everything(tmp_path) if "partial" in name] == []
