"""The contract: what it derives, what it refuses, and that it survives being written down."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfswa.runtime.errors import BundleError
from tfswa.runtime.model.spec import SPEC_VERSION, ChunkSpec, ModelSpec, StftSpec


def refusal(error: pytest.ExceptionInfo[BundleError], *parts: object) -> None:
    """A message is one line and holds the values that disagree."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def test_defaults_are_the_documented_ones() -> None:
    assert StftSpec() == StftSpec(n_fft=4096, hop=1024, sample_rate=44_100, scale=1 / 32)
    assert StftSpec().bins == 2048
    assert ChunkSpec().step == 256 - 1 - 32 - 8


def test_derived_sizes(tiny_spec: ModelSpec) -> None:
    assert tiny_spec.stft.bins == 256
    assert tiny_spec.chunk.step == 16 - 1 - 4 - 2
    assert tiny_spec.chunk_samples == 15 * 128
    assert tiny_spec.context_samples == 256
    assert tiny_spec.fade_samples == 256
    assert tiny_spec.input_shape(3) == (3, 4, 16, 256)
    assert tiny_spec.output_shape(3) == (3, 2, 4, 16, 256)
    mono = dataclasses.replace(tiny_spec, channels=1, stems=("a", "b", "c"), unseen_stem="")
    assert mono.input_shape(1) == (1, 2, 16, 256)
    assert mono.output_shape(1) == (1, 3, 2, 16, 256)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 2), (128, 2), (129, 3), (1920, 16), (1921, 17)])
def test_frames_cover_the_signal(tiny_spec: ModelSpec, samples: int, frames: int) -> None:
    assert tiny_spec.stft.frames(samples) == frames


def test_a_chunk_has_as_many_frames_as_the_transform_gives_it(tiny_spec: ModelSpec) -> None:
    for spec in (tiny_spec, ModelSpec(family="x", stems=("a",))):
        assert spec.stft.frames(spec.chunk_samples) == spec.chunk.frames


def test_nyquist_goes_to_the_last_stem_unless_named() -> None:
    assert ModelSpec(family="x", stems=("a", "b")).unseen_stem == "b"
    assert ModelSpec(family="x", stems=("a", "b"), unseen_stem="a").unseen_stem == "a"


@pytest.mark.parametrize(
    "values",
    [
        {"n_fft": 0},
        {"hop": 0},
        {"hop": -1024},
        {"sample_rate": 0},
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": math.nan},
        {"scale": math.inf},
        {"n_fft": 4095, "hop": 1365},
        {"n_fft": 4096, "hop": 4097},
        {"n_fft": 4096, "hop": 3600},
        {"window": "hamming"},
        {"padding": "constant"},
        {"offset": -1},
        {"hop": 441, "offset": 221},
        {"offset": 1.0},
        {"seen": (0, 2050)},
        {"seen": (-1, 5)},
        {"seen": (3, 0)},
        {"zero_below": -1},
        {"fill": -1},
        {"fill": 8193},
        {"endless": 1},
        {"zero_below": 2048},
        {"n_fft": 1024, "hop": 1024},
        {"n_fft": 4096.0},
        {"sample_rate": "44100"},
    ],
)
def test_impossible_transforms_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as error:
        StftSpec(**values)
    refusal(error, *(name for name in values if len(values) == 1), *values.values())


def test_a_hop_is_refused_where_the_windows_leave_gaps() -> None:
    with pytest.raises(BundleError, match=r"hop 3600 of n_fft 4096: .* falls to 0.0026, below 0.01"):
        StftSpec(4096, 3600)
    assert StftSpec(4096, 3600, window="none").least_sum == 1.0
    assert StftSpec(4096, 2048).least_sum == pytest.approx(0.5)


@pytest.mark.parametrize(("n_fft", "hop"), [(2048, 441), (7680, 1024), (4096, 1000), (4096, 1), (6, 4)])
def test_any_hop_that_covers_the_signal_is_taken(n_fft: int, hop: int) -> None:
    assert StftSpec(n_fft, hop).frames(10 * hop) == 11


def test_bins_that_the_network_sees() -> None:
    assert (StftSpec().first_bin, StftSpec().bins, StftSpec().all_bins) == (0, 2048, 2049)
    some = StftSpec(n_fft=6144, seen=(3, 2048), zero_below=4)
    assert (some.first_bin, some.bins, some.all_bins) == (3, 2048, 3073)
    assert StftSpec(seen=(0, 2049)).bins == 2049


def test_the_first_frame_may_be_centered_later() -> None:
    spec = StftSpec(4096, 1024, padding="reflect", offset=512)
    assert spec.frames(336 * 1024) == 336
    assert spec.frames(1) == 1
    model = ModelSpec(family="x", stems=("a",), stft=spec, chunk=ChunkSpec(frames=336, multiple=1))
    assert model.chunk_samples == 336 * 1024
    assert spec.frames(model.chunk_samples) == 336


def test_ends_that_come_back_quieter_are_context() -> None:
    spec = StftSpec(4096, 1024, padding="reflect", offset=512, endless=True)
    chunk = ChunkSpec(frames=336, context=2, fade=1, multiple=1, short=84)
    ModelSpec(family="x", stems=("a",), stft=spec, chunk=chunk)
    for name, quieter in (("context", 1536), ("context_after", 1452)):
        changed = dataclasses.replace(chunk, **{name: 1})
        if name == "context":
            changed = dataclasses.replace(changed, context_after=2)
        with pytest.raises(BundleError, match=rf"^{name} 1: {quieter} samples .* 1024 are discarded: use 2$"):
            ModelSpec(family="x", stems=("a",), stft=spec, chunk=changed)


def test_context_after_a_chunk_may_differ() -> None:
    chunk = ChunkSpec(frames=64, context=16, context_after=2, fade=4)
    assert (chunk.after, chunk.step) == (2, 64 - 1 - 16 - 2 - 4)
    assert ChunkSpec(context=5).after == 5
    with pytest.raises(BundleError, match=r"context 16 \+ -1 and fade 4"):
        ChunkSpec(frames=64, context=16, context_after=-1, fade=4)


def test_a_network_of_one_stem_makes_two() -> None:
    spec = ModelSpec(family="x", stems=("vocals", "rest"), network_stems=("vocals",), residual_stem="rest")
    assert spec.output_shape(3) == (3, 1, 4, 256, 2048)
    for wrong, parts in (
        ({"network_stems": ("vocals",)}, ("rest", "None")),
        ({"network_stems": ("drums",), "residual_stem": "rest"}, ("drums", "['vocals', 'rest']")),
        ({"network_stems": ("vocals", "vocals"), "residual_stem": "rest"}, ("vocals",)),
        ({"network_stems": (), "residual_stem": "rest"}, ("vocals",)),
        ({"residual_stem": "rest", "residual_gain": 0.0}, ("residual_gain", 0.0)),
    ):
        with pytest.raises(BundleError) as error:
            ModelSpec(family="x", stems=("vocals", "rest"), **wrong)
        refusal(error, *parts)


def test_a_spec_of_version_1_means_what_it_meant(tiny_spec: ModelSpec) -> None:
    old = {
        "spec_version": 1,
        "family": "tfswa_lite",
        "stems": ["vocals", "accompaniment"],
        "hyper": {"dims": [8, 16]},
        "channels": 2,
        "stft": {"n_fft": 512, "hop": 128, "sample_rate": 44100, "scale": 0.03125},
        "chunk": {"frames": 16, "context": 2, "fade": 2, "multiple": 8},
        "nyquist_stem": "vocals",
        "residual_stem": None,
        "weights_licence": "MIT",
        "parameters": 5,
        "gflop_per_second": 0.5,
    }
    spec = ModelSpec.from_dict(old)
    assert (spec.unseen_stem, spec.outputs, spec.residual_gain) == ("vocals", spec.stems, 1.0)
    assert (spec.stft.window, spec.stft.padding, spec.stft.seen) == ("hann", "zero", None)
    assert spec.chunk.after == spec.chunk.context == 2
    assert spec.to_dict() == old, "what version 1 can say is said in it: digests are made of that"
    assert ModelSpec.from_dict(json.loads(json.dumps(old))) == spec


@pytest.mark.parametrize(
    ("chunk", "stft", "says"),
    [
        (ChunkSpec(short=1024), StftSpec(), ["short 1024", "1023", "hop 1024"]),
        (ChunkSpec(short=-1), StftSpec(), ["short -1"]),
        (ChunkSpec(2, 0, 0, 1, short=1), StftSpec(offset=0), []),
        (ChunkSpec(1 + 8, 0, 4, 1, short=1), StftSpec(), ["short 1", "fade 4"]),
        (ChunkSpec(1 + 8, 0, 4, 1, short=1000), StftSpec(offset=500), []),
    ],
)
def test_a_chunk_ends_before_its_last_frame_by_less_than_a_hop(
    chunk: ChunkSpec, stft: StftSpec, says: list[str]
) -> None:
    if not says:
        spec = ModelSpec("x", ("a",), chunk=chunk, stft=stft)
        assert spec.stft.frames(spec.chunk_samples) == chunk.frames
        assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
        return
    with pytest.raises(BundleError) as error:
        ModelSpec("x", ("a",), chunk=chunk, stft=stft)
    assert all(part in str(error.value) for part in says)


@pytest.mark.parametrize(
    "change",
    [
        {"stft": StftSpec(padding="reflect")},
        {"stft": StftSpec(window="none")},
        {"stft": StftSpec(offset=512)},
        {"stft": StftSpec(seen=(0, 2049))},
        {"stft": StftSpec(zero_below=3)},
        {"chunk": ChunkSpec(context_after=2)},
        {"chunk": ChunkSpec(short=84)},
        {"stft": StftSpec(fill=1300)},
        {"residual_gain": 1.035},
        {"network_stems": ("a",), "residual_stem": "b"},
        {"unseen_stem": None},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_what_version_1_cannot_say_is_version_2(change: dict[str, Any]) -> None:
    spec = ModelSpec(family="x", stems=("a", "b"), **change)
    assert spec.to_dict()["spec_version"] == 2
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"frames": 0}, ("frames", 0)),
        ({"multiple": 0}, ("multiple", 0)),
        ({"frames": 250}, (250, 64, 256)),
        ({"context": -1}, (-1,)),
        ({"fade": -1}, (-1,)),
        ({"context": 124, "fade": 7}, (124, 7, 256)),
        ({"context": 0, "fade": 128}, (128, 127)),
        ({"frames": 256.0}, ("frames", 256.0)),
    ],
)
def test_impossible_chunks_are_refused(values: dict[str, Any], parts: tuple[object, ...]) -> None:
    with pytest.raises(BundleError) as error:
        ChunkSpec(**values)
    refusal(error, *parts)


def test_the_longest_fade_that_fits_is_accepted() -> None:
    assert ChunkSpec(frames=257, multiple=1, context=0, fade=128).step == 128
    assert ChunkSpec(frames=256, context=127, fade=0).step == 1


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"stems": ()}, ("[]",)),
        ({"stems": ("a", "b", "a")}, ("['a', 'b', 'a']",)),
        ({"stems": "vocals"}, ("vocals",)),
        ({"stems": ("a", "")}, ("''",)),
        ({"stems": ("a", 3)}, ("3",)),
        ({"stems": ("a", "../b")}, ("../b",)),
        ({"stems": ("a", "..")}, ("'..'",)),
        ({"stems": ("a", "b\\c")}, ("b\\\\c",)),
        ({"stems": ("a", "b\nc")}, ("b\\nc",)),
        ({"channels": 0}, (0,)),
        ({"channels": 3}, (3,)),
        ({"unseen_stem": "drums"}, ("unseen_stem", "drums", "['a', 'b']")),
        ({"residual_stem": "drums"}, ("residual_stem", "drums", "['a', 'b']")),
        ({"residual_stem": ""}, ("residual_stem",)),
    ],
)
def test_impossible_models_are_refused(values: dict[str, Any], parts: tuple[object, ...]) -> None:
    with pytest.raises(BundleError) as error:
        ModelSpec(**{"family": "x", "stems": ("a", "b"), **values})
    refusal(error, *parts)


def test_round_trip_through_json(tiny_spec: ModelSpec) -> None:
    full = dataclasses.replace(
        tiny_spec,
        stems=("x", "y", "z"),
        unseen_stem="x",
        residual_stem="y",
        channels=1,
        weights_license="CC0-1.0",
        parameters=5,
        gflop_per_second=0.25,
        stft=StftSpec(n_fft=1024, hop=256, sample_rate=48_000, scale=0.5),
    )
    for spec in (tiny_spec, full):
        assert ModelSpec.from_dict(spec.to_dict()) == spec
        assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_license_of_the_weights_is_written_as_version_1_spells_it_and_read_in_either(
    tiny_spec: ModelSpec,
) -> None:
    spec = dataclasses.replace(tiny_spec, weights_license="CC0-1.0")
    written = spec.to_dict()
    assert written["weights_licence"] == "CC0-1.0"  # hashes of bundles are made of it
    assert "weights_license" not in written
    license_ = written.pop("weights_licence")
    today = {**written, "weights_license": license_}
    assert ModelSpec.from_dict(today) == spec
    with pytest.raises(BundleError, match="weights_licence"):
        ModelSpec.from_dict({**today, "weights_licence": "MIT"})


def test_tuples_among_the_hyper_parameters_are_equal_after_json() -> None:
    spec = ModelSpec(family="x", stems=("a",), hyper={"dims": (1, 2), "nested": {"of": ((1,), 2)}})
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_writing_down_does_not_share_memory(tiny_spec: ModelSpec) -> None:
    tiny_spec.to_dict()["hyper"]["dims"] = "changed"
    assert tiny_spec.hyper["dims"] == [8, 16]


@pytest.mark.parametrize("version", [None, 0, SPEC_VERSION + 1, "1"])
def test_another_version_is_refused(tiny_spec: ModelSpec, version: object) -> None:
    with pytest.raises(BundleError, match=f"spec version {version} is not 1 to {SPEC_VERSION}") as error:
        ModelSpec.from_dict({**tiny_spec.to_dict(), "spec_version": version})
    refusal(error)


@pytest.mark.parametrize("place", ["", "stft", "chunk"])
def test_unknown_fields_are_refused_by_name(tiny_spec: ModelSpec, place: str) -> None:
    data = tiny_spec.to_dict()
    (data[place] if place else data)["color"] = 1
    with pytest.raises(BundleError, match="color") as error:
        ModelSpec.from_dict(data)
    refusal(error)


@pytest.mark.parametrize("missing", ["stft", "chunk", "stems", "family"])
def test_missing_fields_are_refused_by_name(tiny_spec: ModelSpec, missing: str) -> None:
    data = tiny_spec.to_dict()
    del data[missing]
    with pytest.raises(BundleError, match=missing) as error:
        ModelSpec.from_dict(data)
    refusal(error)


@pytest.mark.parametrize("data", [None, "text", 3, [1], [["spec_version", SPEC_VERSION]]])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(BundleError):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize(
    ("place", "value"), [("stft", None), ("chunk", "256"), ("stems", "vocals"), ("stems", 4), ("hyper", 5)]
)
def test_fields_of_a_wrong_type_are_refused(tiny_spec: ModelSpec, place: str, value: Any) -> None:
    with pytest.raises(BundleError) as error:
        ModelSpec.from_dict({**tiny_spec.to_dict(), place: value})
    refusal(error)


JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 4, 0.5, math.nan, "", "a", "\n"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "\n"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(ModelSpec)]), JSON)
def test_any_json_is_read_or_refused(field: str, value: Any) -> None:
    sound = ModelSpec(family="x", stems=("a", "b")).to_dict()
    messages = []
    try:
        ModelSpec.from_dict({**sound, field: value})
    except BundleError as error:
        messages.append(str(error))
    assert not any("\n" in message for message in messages)
