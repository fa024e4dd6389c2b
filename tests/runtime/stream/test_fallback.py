"""Chunks with NaN or Inf computed again in float32: which, by what, when that is loaded, what is refused."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from planes import Tensors, planes_session

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import BackendUnavailable, NonFiniteError, TfxError, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, FileModel, open_model
from tfswa.runtime.model.spec import OUTPUT, ModelSpec
from tfswa.runtime.stream import fallback, separator
from tfswa.runtime.stream.fallback import Fallback
from tfswa.runtime.stream.overlap import OverlapAdd
from tfswa.runtime.stream.plan import ChunkPlan
from tfswa.runtime.stream.separator import Separator

Audio = NDArray[np.float32]
Planes = NDArray[np.float32]

RATE = 8000
BAD = 3  # chunk


class Fixed:
    """A session whose stems are shares of the mixture; ``spoil(item, number)`` may change one chunk's."""

    versions: Mapping[str, str] = {}

    def __init__(self, name: str, share: float, spoil: Callable[[Planes, int], None] = lambda *_: None):
        self.name, self.description, self.artifact = name, f"{name} 1.0", (f"model.{name}", "0" * 64)
        self._shares = np.array((share, 1 - share), np.float32).reshape(2, 1, 1, 1)
        self._spoil = spoil
        self.batches: list[int] = []
        self.closed = False

    def infer(self, given: Tensors) -> Tensors:
        return planes_session(self._share)(given)

    def _share(self, mixture: Planes) -> Planes:
        first = sum(self.batches)
        self.batches.append(len(mixture))
        out = np.stack([plane * self._shares for plane in mixture])
        for number, item in enumerate(out, first):
            self._spoil(item, number)
        return out

    def close(self) -> None:
        self.closed = True


def bad_from(value: float, *chunks: int) -> Callable[[Planes, int], None]:
    """Put ``value`` into the second stem of some chunks."""

    def spoil(item: Planes, number: int) -> None:
        if number in chunks:
            item[1, 0, 5, 7] = value

    return spoil


@pytest.fixture
def model(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> BundleModel:
    """A bundle that torch could run, were its weights a network's."""
    monkeypatch.setattr(fallback, "find_spec", lambda name: name)
    return BundleModel("tiny", tiny_bundle)


Use = Callable[..., Separator]


@pytest.fixture
def use(model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> Use:
    """``use(artifact, reference, batch=...)``: a separator whose sessions are made here."""

    def make(artifact: Fixed, reference: Fixed | TfxError | None = None, **options: Any) -> Separator:
        def load(*_: object) -> Fixed:
            assert reference is not None, "loaded without need"
            if isinstance(reference, TfxError):
                raise reference
            return reference

        monkeypatch.setattr(separator, "open_session", lambda *_: artifact)
        monkeypatch.setattr(fallback, "open_session", load)
        return Separator(model, **{"on_nonfinite": "recompute", **options})

    return make


def noise(samples: int = 3 * RATE) -> Audio:
    return (np.random.default_rng(0).standard_normal((2, samples)) * 0.1).astype(np.float32)


def pushed(engine: OverlapAdd, song: Audio, samples: int) -> Audio:
    pieces = [engine.push(song[:, at : at + samples]) for at in range(0, song.shape[-1], samples)]
    return np.concatenate((*pieces, engine.flush()), axis=-1)


def plan_of(spec: ModelSpec) -> ChunkPlan:
    return ChunkPlan.of(spec)


def places(spec: ModelSpec, chunk: int) -> tuple[slice, slice]:
    """What a chunk gives to the result: with its cross-fades, and alone."""
    plan = plan_of(spec)
    start, stop = chunk * plan.step, chunk * plan.step + plan.kept
    return slice(start, stop), slice(start + plan.fade_samples, stop - plan.fade_samples)


class TestABadChunk:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("push", [777, 3 * RATE])
    @pytest.mark.parametrize("batch", [1, 2, 4])
    def test_is_the_references_and_all_others_the_artifacts(
        self, use: Use, batch: int, push: int, value: float
    ) -> None:
        song, reference = noise(), Fixed("exact", 0.25)
        with use(Fixed("fast", 0.5), batch=batch) as clean, use(Fixed("exact", 0.25)) as other:
            fast, exact = clean.separate(song), other.separate(song)
        with use(Fixed("fast", 0.5, bad_from(value, BAD)), reference, batch=batch) as spoilt:
            engine = spoilt.stream()
            found = pushed(engine, song, push)
        touched, alone = places(spoilt.spec, BAD)
        assert alone.start < alone.stop
        np.testing.assert_array_equal(found[..., alone], exact[..., alone])
        assert not np.array_equal(exact[..., alone], fast[..., alone])
        np.testing.assert_array_equal(found[..., : touched.start], fast[..., : touched.start])
        np.testing.assert_array_equal(found[..., touched.stop :], fast[..., touched.stop :])
        assert reference.batches == [1]
        start = engine.plan.start(BAD)
        assert [(r.chunk, r.start, r.stop, r.stems) for r in engine.redone] == [
            (BAD, start, start + engine.plan.chunk_samples, ("accompaniment",))
        ]
        assert spoilt.recomputed_by == "exact 1.0 (model.exact)"

    def test_nothing_is_loaded_without_one(self, use: Use) -> None:
        with use(Fixed("fast", 0.5)) as clean:
            stream = clean.stream()
            stream.push(noise())
            stream.flush()
        assert stream.redone == []
        assert clean.recomputed_by is None

    def test_two_of_one_batch_are_computed_one_by_one_by_one_session(self, use: Use) -> None:
        reference = Fixed("exact", 0.25)
        with use(Fixed("fast", 0.5, bad_from(np.nan, 2, 3, 9)), reference, batch=4) as spoilt:
            stream = spoilt.stream()
            stream.push(noise())
            stream.flush()
            assert [chunk.chunk for chunk in stream.redone] == [2, 3, 9]
            assert reference.batches == [1, 1, 1]
            assert not reference.closed
        assert reference.closed

    def test_songs_are_counted_apart(self, use: Use, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "song.wav", noise().T, RATE, subtype="FLOAT")
        artifact = Fixed("fast", 0.5, bad_from(np.nan, 0, 1))
        with use(artifact, Fixed("exact", 0.25)) as spoilt:
            first, second = (
                spoilt.separate_file(tmp_path / "song.wav", {"vocals": tmp_path / f"{name}.wav"})
                for name in ("first", "second")
            )
        plan = plan_of(spoilt.spec)
        assert first.recomputed == (
            (0.0, (plan.start(0) + plan.chunk_samples) / RATE),
            (plan.start(1) / RATE, (plan.start(1) + plan.chunk_samples) / RATE),
        )
        assert second.recomputed == ()

    def test_is_an_error_unless_asked_for(self, use: Use) -> None:
        artifact = Fixed("fast", 0.5, bad_from(np.nan, BAD))
        with (
            use(artifact, on_nonfinite="error") as strict,
            pytest.raises(NonFiniteError, match=r"^chunk 3 .* of accompaniment holds NaN or Inf: compute"),
        ):
            strict.separate(noise())

    def test_that_is_bad_in_float32_too_is_an_error(self, use: Use) -> None:
        artifact, reference = (
            Fixed("fast", 0.5, bad_from(np.nan, BAD)),
            Fixed("exact", 0.25, bad_from(np.inf, 0)),
        )
        with (
            use(artifact, reference, batch=2) as spoilt,
            pytest.raises(
                NonFiniteError, match=r"^chunk 3 .* of accompaniment holds NaN or Inf, in float32 too: check"
            ),
        ):
            spoilt.separate(noise())

    def test_by_the_inverse_transform_is_an_error(self, use: Use) -> None:
        def huge(item: Planes, number: int) -> None:
            if number == BAD:
                item[1] = 3e38

        with (
            use(Fixed("fast", 0.5, huge), batch=2) as spoilt,
            pytest.raises(
                NonFiniteError,
                match=r"^chunk 3 .* of accompaniment .*: the network's output is finite, its inv",
            ),
        ):
            spoilt.separate(noise())

    def test_that_nothing_can_be_loaded_for_says_both(self, use: Use) -> None:
        missing = BackendUnavailable("torch has no libgomp")
        with (
            use(Fixed("fast", 0.5, bad_from(np.nan, BAD)), missing) as spoilt,
            pytest.raises(BackendUnavailable, match=r"cannot be computed in float32: torch has no libgomp"),
        ):
            spoilt.separate(noise())

    def test_a_reference_of_another_shape_is_named(self, use: Use) -> None:
        reference = Fixed("exact", 0.25)
        reference.infer = lambda given: {OUTPUT: np.zeros((1, 3), np.float32)}  # type: ignore[method-assign]
        with (
            use(Fixed("fast", 0.5, bad_from(np.nan, BAD)), reference) as spoilt,
            pytest.raises(
                TfxError, match=r"^exact 1.0 .* returned shapes {'stems': \(1, 3\)}, the spec says"
            ),
        ):
            spoilt.separate(noise())


def add_graph(bundle: Bundle) -> None:
    bundle.add("model.onnx", lambda path: path.touch(), kind="onnx", precision="fp32")


class TestWhichOne:
    """Decided at once, and without importing anything."""

    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """``installed("torch")``: that and nothing else."""

        def only(*names: str) -> None:
            monkeypatch.setattr(fallback, "find_spec", lambda name: name in names or None)

        return only

    @pytest.fixture(autouse=True)
    def nothing_is_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(*_: object) -> None:
            raise AssertionError("loaded")

        monkeypatch.setattr(fallback, "open_session", load)

    def test_eager_torch_where_it_is(self, installed: Callable[..., None], model: BundleModel) -> None:
        add_graph(model.bundle)
        installed("torch", "onnxruntime")
        assert Fallback(model).backend == "torch"

    def test_onnxruntime_without_torch(self, installed: Callable[..., None], model: BundleModel) -> None:
        add_graph(model.bundle)
        installed("onnxruntime")
        assert Fallback(model).backend == "ort"

    def test_onnxruntime_without_the_family(
        self, installed: Callable[..., None], model: BundleModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_graph(model.bundle)
        installed("torch", "onnxruntime")
        monkeypatch.setattr(fallback, "entry_points", lambda group: [SimpleNamespace(name="other")])
        assert Fallback(model).backend == "ort"

    @pytest.mark.parametrize(
        ("there", "graph", "words"),
        [
            ((), True, "torch is not installed, and onnxruntime is not installed: pip install"),
            (("onnxruntime",), False, "and it holds no onnx artifact in fp32: pip install"),
        ],
    )
    def test_neither_is_a_missing_backend(
        self, installed: Callable[..., None], model: BundleModel, there: Any, graph: bool, words: str
    ) -> None:
        if graph:
            add_graph(model.bundle)
        installed(*there)
        with pytest.raises(BackendUnavailable, match=words):
            Fallback(model)

    def test_a_torch_that_is_hidden_is_none(
        self, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BackendUnavailable, match="torch is not installed"):
            Fallback(BundleModel("tiny", tiny_bundle))

    def test_an_exported_file_has_none(self, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(separator, "open_session", lambda *_: pytest.fail("loaded"))
        file = FileModel("model.fp16.onnx", Path("model.fp16.onnx"), "onnx", "fp16", tiny_spec, "0" * 64)
        with pytest.raises(UsageError, match=r"model\.fp16\.onnx is an exported file: .* needs the bundle"):
            Separator(file, on_nonfinite="recompute")

    @pytest.mark.parametrize(("there", "name"), [("torch", "torch"), ("onnxruntime", "ort")])
    def test_is_not_what_runs_already(
        self, installed: Callable[..., None], model: BundleModel, monkeypatch: Any, there: str, name: str
    ) -> None:
        add_graph(model.bundle)
        installed(there)
        session = Fixed(name, 0.5)
        monkeypatch.setattr(separator, "open_session", lambda *_: session)
        for precision in (None, "fp32"):
            with pytest.raises(UsageError, match=rf"^{name} in fp32 runs already"):
                Separator(model, options=BackendOptions(precision), on_nonfinite="recompute")
            assert session.closed
        Separator(model, options=BackendOptions("fp16"), on_nonfinite="recompute").close()

    def test_another_word_is_refused(self, model: BundleModel) -> None:
        with pytest.raises(UsageError, match="on_nonfinite 'zero': choose error or recompute"):
            Separator(model, on_nonfinite="zero")  # type: ignore[arg-type]


def hears(spec: ModelSpec, chunk: int, sound: slice) -> bool:
    start = plan_of(spec).start(chunk)
    return start < sound.stop and sound.start < start + spec.chunk_samples


def test_a_float16_overflow_of_the_eager_network(network_bundle: Bundle, tmp_path: Path) -> None:
    """Silence is 0 to this network, and sound overflows its first convolution in float16."""
    weights = network_bundle.weights()
    weights["mean"] = np.full_like(weights["mean"], np.log(1e-3))
    weights["stem.weight"] = weights["stem.weight"] * np.float32(1e5)
    Bundle.create(tmp_path / "loud.tfx", network_bundle.spec, weights)
    model = open_model(tmp_path / "loud.tfx")
    song, burst = np.zeros((2, 2 * RATE), np.float32), slice(RATE, RATE + 100)
    song[:, burst] = noise(100)
    with Separator(model, backend="torch") as separator_32:
        exact = separator_32.separate(song)
    half = BackendOptions("fp16", threads=1)
    with (
        Separator(model, backend="torch", options=half) as strict,
        pytest.raises(NonFiniteError, match="compute it in float32"),
    ):
        strict.separate(song)
    with Separator(model, backend="torch", options=half, on_nonfinite="recompute") as opened:
        stream = opened.stream()
        found = np.concatenate((stream.push(song), stream.flush()), axis=-1)
    bad = [chunk.chunk for chunk in stream.redone]
    assert bad == [chunk for chunk in range(bad[-1] + 3) if hears(opened.spec, chunk, burst)]
    inside = slice(places(opened.spec, bad[0])[1].start, places(opened.spec, bad[-1])[1].stop)
    np.testing.assert_array_equal(found[..., inside], exact[..., inside])
    assert np.abs(found[..., burst]).max() > 0.01
    assert opened.recomputed_by is not None
    assert opened.recomputed_by.endswith("eager, fp32 on cpu (model.safetensors)")
