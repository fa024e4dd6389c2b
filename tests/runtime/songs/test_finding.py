"""Which files belong to which song, in every layout, and the same songs as the package musdb sees."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tfswa.runtime.errors import AudioError, UsageError
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs import finding
from tfswa.runtime.songs.finding import STEM_FILE_STREAMS, find_songs, pick_songs
from tfswa.runtime.songs.loading import example_stem_file, load, load_source

STEMS = ("vocals", "accompaniment")
HQ = ("bass", "drums", "mixture", "other", "vocals")


def touch(root: Path, *names: str) -> Path:
    """Files without content: nothing here may open them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, split: str | None = None) -> list[tuple[str, str, list[str]]]:
    return [(song.split, song.name, sorted(song.sources)) for song in find_songs(root, split)]


class TestLayouts:
    def test_musdb18(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/b - y.stem.mp4", "train/a - x.stem.mp4", "test/c.stem.mp4", "README.md")
        songs = find_songs(tmp_path)
        assert [(s.split, s.name) for s in songs] == [("train", "a - x"), ("train", "b - y"), ("test", "c")]
        for index, name in enumerate(STEM_FILE_STREAMS):
            assert songs[2].sources[name] == (tmp_path / "test" / "c.stem.mp4", index)
        assert listed(tmp_path, "test") == [("test", "c", sorted(STEM_FILE_STREAMS))]

    def test_musdb18_hq(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"{song}/{name}.wav" for song in ("train/B", "train/A", "test/C") for name in HQ))
        assert listed(tmp_path) == [
            (*key, list(HQ)) for key in (("train", "A"), ("train", "B"), ("test", "C"))
        ]
        (song,) = find_songs(tmp_path, "test")
        assert song.sources["bass"] == (tmp_path / "test/C/bass.wav", 0)

    def test_folders_of_any_sources(self, tmp_path: Path) -> None:
        touch(tmp_path, "two/voice.flac", "two/piano.mp3", "two/cover.png", "one/speech.wav", ".git/x.wav")
        assert listed(tmp_path) == [("", "one", ["speech"]), ("", "two", ["piano", "voice"])]

    def test_stem_files_and_song_folders_together(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.STEM.MP4", "a/vocals.wav", "a/drums.wav", ".c.stem.mp4")
        assert listed(tmp_path) == [("", "a", ["drums", "vocals"]), ("", "b", sorted(STEM_FILE_STREAMS))]

    def test_one_song_folder(self, tmp_path: Path) -> None:
        touch(tmp_path / "song", "vocals.mp4", "drums.wav", "piano.wav", "raw/vocals.wav", "raw/drums.wav")
        assert listed(tmp_path / "song") == [("", "song", ["drums", "piano", "vocals"])]

    def test_a_song_folder_is_told_by_the_names_that_are_asked_for(self, tmp_path: Path) -> None:
        touch(tmp_path / "song", "speech.wav", "music.wav")
        assert [song.name for song in find_songs(tmp_path / "song")] == ["music.wav", "speech.wav"]
        (song,) = find_songs(tmp_path / "song", names=("speech", "music"))
        assert (song.name, sorted(song.sources)) == ("song", ["music", "speech"])

    def test_one_file(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.stem.mp4", "video.mp4", "b.flac")
        assert listed(tmp_path / "a.stem.mp4") == [("", "a", sorted(STEM_FILE_STREAMS))]
        assert listed(tmp_path / "video.mp4") == [("", "video.mp4", sorted(STEM_FILE_STREAMS))]
        assert listed(tmp_path / "b.flac") == [("", "b.flac", ["mixture"])]

    def test_loose_audio_has_no_sources(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.wav", "a.flac", "a.wav", "notes/take.wav")
        assert listed(tmp_path) == [("", name, ["mixture"]) for name in ("a.flac", "a.wav", "b.wav")]

    def test_loose_audio_beside_songs_is_no_song(self, tmp_path: Path) -> None:
        touch(tmp_path, "readme.mp3", "a/vocals.wav", "a/drums.wav", "notes/take.wav")
        assert listed(tmp_path) == [("", "a", ["drums", "vocals"])]

    def test_the_folder_that_one_is_in_has_a_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(touch(tmp_path / "song", "vocals.wav", "drums.wav"))
        assert find_songs(Path("."))[0].name == "song"


class TestRefusals:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"none cannot be opened: there is no such file or folder"):
            find_songs(tmp_path / "none")

    @pytest.mark.parametrize("files", [(), ("notes.txt", ".hidden.wav")])
    def test_no_audio(self, tmp_path: Path, files: tuple[str, ...]) -> None:
        with pytest.raises(AudioError, match="holds no audio"):
            find_songs(touch(tmp_path, *files))

    def test_an_empty_split(self, tmp_path: Path) -> None:
        (tmp_path / "test").mkdir()
        touch(tmp_path, "train/a.stem.mp4")
        with pytest.raises(AudioError, match=r"test holds no audio"):
            find_songs(tmp_path, "test")
        assert len(find_songs(tmp_path)) == 1

    def test_an_unknown_split(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/a.stem.mp4")
        with pytest.raises(AudioError, match=r"has train, asked for is 'test': choose another"):
            find_songs(tmp_path, "test")

    def test_a_split_where_there_are_none(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.stem.mp4")
        for place in (tmp_path, tmp_path / "a.stem.mp4"):
            with pytest.raises(AudioError, match=r"has no splits, asked for is 'test'"):
                find_songs(place, "test")

    def test_two_songs_of_one_name(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.stem.mp4", "a/vocals.wav", "a/drums.wav")
        touch(tmp_path, "b/vocals.wav", "b/drums.wav")
        bad, good = find_songs(tmp_path)
        assert (bad.name, bad.sources, good.name, good.fault) == ("a", {}, "b", "")
        with pytest.raises(AudioError, match="holds the song 'a' 2 times"):
            bad.check()

    def test_one_name_in_two_splits_is_two_songs(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/a.stem.mp4", "test/a.stem.mp4")
        assert [(song.split, song.name) for song in find_songs(tmp_path)] == [("train", "a"), ("test", "a")]

    def test_a_source_twice(self, tmp_path: Path, tiny_spec: ModelSpec) -> None:
        touch(tmp_path, "a/vocals.wav", "a/vocals.flac", "a/drums.wav")
        touch(tmp_path, "b/vocals.wav", "b/drums.wav")
        bad, good = find_songs(tmp_path)
        assert (bad.name, bad.sources, good.name, good.fault) == ("a", {}, "b", "")
        with pytest.raises(AudioError, match=r"vocals twice, vocals.flac and vocals.wav"):
            bad.check()
        (bad,) = find_songs(tmp_path / "a")
        with pytest.raises(AudioError, match=r"vocals twice"):
            load(bad, tiny_spec)
        with pytest.raises(AudioError, match=r"vocals twice"):
            load_source(bad, "drums", tiny_spec)

    @pytest.mark.parametrize("beside", [(), ("loose.wav",)])
    def test_a_folder_that_cannot_be_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: tuple[str, ...]
    ) -> None:
        """As root any folder can: the refusal is the system's, put in its place."""
        touch(tmp_path, "a/vocals.wav", "a/drums.wav", "b/vocals.wav", "b/drums.wav", *beside)
        listing = finding.audio_files

        def refusing(folder: Path) -> list[Path]:
            if folder.name == "a":
                raise PermissionError(13, "Permission denied", str(folder))
            return listing(folder)

        monkeypatch.setattr(finding, "audio_files", refusing)
        bad, good = find_songs(tmp_path)
        assert (bad.name, bad.sources, good.name, good.fault) == ("a", {}, "b", "")
        assert bad.fault.startswith(f"{tmp_path / 'a'} cannot be listed (Permission denied): ")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")
def test_musdb_sees_the_same_songs_and_samples(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg and ffprobe are missing, musdb cannot be imported")
    musdb = pytest.importorskip("musdb", reason="musdb is not installed")
    example = example_stem_file()
    if example is None:
        pytest.skip("stempeg is not installed: its example stem file is the real one")
    for name in ("train/B - b", "train/A - a", "test/C - c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(example, tmp_path / f"{name}.stem.mp4")
    spec = ModelSpec("any", ("vocals", "accompaniment"))
    for split in ("train", "test"):
        tracks = musdb.DB(root=str(tmp_path), subsets=[split]).tracks
        ours = find_songs(tmp_path, split)
        assert [track.name for track in tracks] == [song.name for song in ours]
    for name in ("vocals", "drums", "bass", "other"):
        theirs = tracks[0].sources[name].audio.T
        found = load_source(ours[0], name, spec)
        assert found.shape == theirs.shape
        # musdb decodes to 16 bits, which end at full scale; what lies beyond it is kept here.
        np.testing.assert_allclose(found.clip(-1, 1), theirs, atol=1e-4)
        assert np.abs(found[:, 1:] - theirs[:, :-1]).max() > 1e-3  # one sample off would be seen


class TestPick:
    def test_the_test_songs_unless_said_otherwise(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/a.stem.mp4", "test/b.stem.mp4")
        assert [song.name for song in pick_songs(tmp_path, None, (), STEMS)] == ["b"]
        assert [song.name for song in pick_songs(tmp_path, "train", (), STEMS)] == ["a"]
        with pytest.raises(AudioError, match="has train, test, asked for is 'dev'"):
            pick_songs(tmp_path, "dev", (), STEMS)

    def test_all_songs_where_there_are_no_splits(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.stem.mp4", "b.stem.mp4")
        assert len(pick_songs(tmp_path, None, (), STEMS)) == 2

    def test_songs_by_name(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"{name}.stem.mp4" for name in "abcdefg"))
        assert [song.name for song in pick_songs(tmp_path, None, ("c", "a"), STEMS)] == ["a", "c"]
        with pytest.raises(UsageError, match=r"no song 'z' in .*it holds a, b, c, d, e and 2 more"):
            pick_songs(tmp_path, None, ("z",), STEMS)

    def test_musdb_is_a_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        touch(tmp_path / "there", "test/a.stem.mp4", "train/b.stem.mp4")
        monkeypatch.setenv("MUSDB_PATH", str(tmp_path / "there"))
        assert [song.name for song in pick_songs(Path("musdb"), None, (), STEMS)] == ["a"]
        touch(tmp_path / "musdb", "c.stem.mp4")  # a folder of that name is meant first
        assert [song.name for song in pick_songs(Path("musdb"), None, (), STEMS)] == ["c"]
        monkeypatch.delenv("MUSDB_PATH")
        monkeypatch.setenv("HOME", str(tmp_path))
        shutil.rmtree(tmp_path / "musdb")
        with pytest.raises(UsageError, match=r"no MUSDB18 in .*MUSDB18-7"):
            pick_songs(Path("musdb"), None, (), STEMS)
        touch(tmp_path / "MUSDB18" / "MUSDB18-7", "test/d.stem.mp4")
        assert [song.name for song in pick_songs(Path("musdb"), None, (), STEMS)] == ["d"]
