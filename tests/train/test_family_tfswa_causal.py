"""The causal family: no look-ahead, state instead of context, exports that hand it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.errors import ConfigError, UsageError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import INPUT, NEXT, OUTPUT, STATE, ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.separator import Separator

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.backend import new_bundle  # noqa: E402
from tfswa.train.families import build_network, new_spec  # noqa: E402
from tfswa.train.families.contract import call  # noqa: E402

Make = Callable[..., BundleModel]

FAMILY = "tfswa_causal"
MOST_PARAMETERS = 2_500_000
SMALL: dict[str, Any] = {
    "dims": [8, 16],
    "depths": [1, 2],
    "decoder_depths": [1],
    "heads": [1, 2],
    "memory": 12,
    "window": 4,
    "fold": 4,
}
STFT = StftSpec(512, 128, 8000)
GATE_DB = 90.0  # rounding alone, as in tests/export
EQUAL = 1e-5


def chunk(frames: int) -> ChunkSpec:
    return ChunkSpec(frames, context=3, fade=0, multiple=1, context_after=3, early=2)


def small_spec(frames: int = 20, **hyper: Any) -> ModelSpec:
    return new_spec(FAMILY, hyper={**SMALL, **hyper}, stft=STFT, chunk=chunk(frames))


def small_network(frames: int = 20, seed: int = 0) -> tuple[Any, ModelSpec]:
    spec = small_spec(frames)
    torch.manual_seed(seed)
    return build_network(spec).eval(), spec


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Bundles with the same weights, whatever their chunks."""

    def made(frames: int) -> BundleModel:
        path = tmp_path / f"causal-{frames}.tfx"
        new_bundle(FAMILY, path, seed=3, hyper=SMALL, stft=STFT, chunk=chunk(frames), force=True)
        model = open_model(path)
        assert isinstance(model, BundleModel)
        return model

    return made


def noise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((2, samples)) * 0.1).astype(np.float32)


def separated(
    model: BundleModel, mixture: NDArray[np.float32], backend: str = "torch", **options: Any
) -> Any:
    with Separator(model, backend=backend, **options) as separator:
        return separator.separate(mixture)


class TestTheNetwork:
    def test_is_no_larger_and_no_later_than_live_use_allows(self) -> None:
        spec = new_spec(FAMILY)
        assert spec.parameters <= MOST_PARAMETERS
        assert spec.least_latency_samples == spec.stft.n_fft  # one window
        assert round(1000 * spec.least_latency_samples / spec.stft.sample_rate) == 46

    def test_a_frame_sees_no_later_one(self) -> None:
        network, spec = small_network()
        planes = torch.randn(1, *spec.takes[INPUT])
        changed = planes.clone()
        changed[:, :, 12:] += torch.randn_like(changed[:, :, 12:])
        with torch.no_grad():
            right, found = (call(network, spec, {INPUT: given})[OUTPUT] for given in (planes, changed))
        assert torch.equal(right[:, :, :, :12], found[:, :, :, :12])
        assert (right[:, :, :, 12] - found[:, :, :, 12]).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["stem", "encoder.1.0.time", "decoder.0.0.window", "head"])
    def test_each_state_is_heard(self, name: str) -> None:
        network, spec = small_network()
        planes = torch.randn(1, *spec.takes[INPUT])
        with torch.no_grad():
            right = call(network, spec, {INPUT: planes})
            found = call(network, spec, {INPUT: planes, STATE + name: torch.ones(1, *spec.state[name])})
        assert (right[OUTPUT] - found[OUTPUT]).abs().max() > 1e-6

    def test_items_of_a_batch_are_kept_apart(self) -> None:
        network, spec = small_network()
        given = {name: torch.randn(3, *shape) for name, shape in spec.takes.items()}
        with torch.no_grad():
            batch = call(network, spec, given)
            alone = call(network, spec, {name: value[1:2] for name, value in given.items()})
        for name, value in alone.items():
            torch.testing.assert_close(batch[name][1:2], value, atol=1e-5, rtol=0)

    def test_a_gradient_reaches_every_weight(self) -> None:
        network, spec = small_network()
        network.train()
        call(network, spec, {INPUT: torch.randn(2, *spec.takes[INPUT])})[OUTPUT].square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    def test_checkpointing_changes_no_gradient(self) -> None:
        gradients = []
        for on in (False, True):
            network, spec = small_network()
            network.train()
            network.checkpointing = on
            planes = torch.randn(1, *spec.takes[INPUT], generator=torch.Generator().manual_seed(1))
            call(network, spec, {INPUT: planes})[OUTPUT].square().mean().backward()
            gradients.append([parameter.grad for parameter in network.parameters()])
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two)


class TestTraining:
    def test_frames_that_are_passed_over_count_in_no_loss(self) -> None:
        """Of a network that gives the true stems behind them, the loss is 0."""
        from tfswa.train.config_files import find_config, load_config
        from tfswa.train.tasks import Separation

        spec = small_spec(frames=30)
        config = load_config(find_config("seed")[0], ["loss.multi_resolution_stft=0"])
        task = Separation(config, spec, torch.device("cpu"))
        true = torch.randn(1, 2, 2, spec.chunk_samples + 2) * 0.1
        true = true[..., 2:] + 2 * true[..., 1:-1] + true[..., :-2]  # nothing in the bin that is not seen
        planes, _ = task.stft.forward(true)
        planes[:, :, :, : spec.chunk.early] = 0

        def perfect(mixture: Any, *state: Any) -> Any:
            return (planes, *state)

        loss, terms = task.loss(perfect, true, [0])
        assert terms
        assert float(loss) < 1e-3 * float(true.abs().mean())

    def test_chunks_of_nothing_else_are_refused(self) -> None:
        from tfswa.train.config_files import find_config, load_config
        from tfswa.train.curriculum import Curriculum

        config = load_config(find_config("seed")[0], ["optim.frames=4"])
        with pytest.raises(ConfigError, match="passes over the first 2") as error:
            Curriculum(config, small_spec())
        assert "\n" not in str(error.value)


class TestStreams:
    def test_frame_by_frame_is_the_whole_pass(self, make: Make) -> None:
        mixture = noise(5000)
        whole = separated(make(70), mixture)
        for frames in (8, 9, 20):  # 8: a chunk gives one frame
            np.testing.assert_allclose(separated(make(frames), mixture), whole, atol=EQUAL)
        assert np.abs(whole).max() > 0.1

    def test_batch_is_no_matter(self, make: Make) -> None:
        mixture = noise(5000)
        right = separated(make(20), mixture)
        np.testing.assert_array_equal(separated(make(20), mixture, batch=4), right)

    def test_two_streams_of_one_separator_are_kept_apart(self, make: Make) -> None:
        one, two = noise(4000, 1), noise(4000, 2)
        with Separator(make(20), backend="torch") as separator:
            right = [separator.separate(mixture) for mixture in (one, two)]
            engines = [separator.stream(), separator.stream()]
            parts: list[list[Any]] = [[], []]
            for at in range(0, 4000, 500):
                for engine, mixture, part in zip(engines, (one, two), parts, strict=True):
                    part.append(engine.push(mixture[:, at : at + 500]))
            for engine, part, wanted in zip(engines, parts, right, strict=True):
                np.testing.assert_array_equal(np.concatenate((*part, engine.flush()), axis=-1), wanted)


@pytest.mark.slow
class TestExports:
    def test_every_format_hands_the_state_on(self, make: Make) -> None:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
        from tfswa.export.onnx import export_onnx
        from tfswa.export.torchscript import export_torchscript

        model = make(20)
        for made in (export_onnx(model), export_torchscript(model)):
            assert set(made.snr_db) == {
                "vocals",
                "accompaniment",
                *(NEXT + name for name in model.spec.state),
            }
            assert min(made.snr_db.values()) > GATE_DB
        assert min(export_onnx(model, precision="fp16").snr_db.values()) > 45
        model = open_model(model.bundle.path)  # type: ignore[assignment]
        mixture = noise(8000)
        right = separated(model, mixture)
        backends = ["ort", "torchscript"]
        try:
            import openvino  # noqa: F401
        except ImportError:
            pass
        else:
            backends.append("openvino")
        for backend in backends:
            value = snr_db(right, separated(model, mixture, backend))
            assert value is None or value > GATE_DB, backend

    def test_parity_compares_the_state_too(self, make: Make, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
        from tfswa.export.onnx import export_onnx
        from tfswa.runtime.parity.figures import graph_figures
        from tfswa.train.reference import TorchReference

        model = make(20)
        export_onnx(model)
        model = open_model(model.bundle.path)  # type: ignore[assignment]
        given = {
            name: np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32) * 0.1
            for name, shape in model.spec.takes.items()
        }
        right = TorchReference(model).network_output(given)
        with Separator(model, backend="ort") as separator:
            rows = graph_figures("noise", model.spec, right, separator.infer(given))
        assert len(rows) == 2 + len(model.spec.state)
        assert all(row.snr_db is None or row.snr_db > GATE_DB for row in rows)

    def test_an_engine_is_built(self, make: Make) -> None:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: it builds the engine")
        from tfswa.export.engine import BuildOptions, build_engine
        from tfswa.export.onnx import export_onnx

        model = make(20)
        export_onnx(model, precision="fp16")
        model = open_model(model.bundle.path)  # type: ignore[assignment]
        options = BuildOptions(flavor="rtx", precision="fp16", capability="8.9")
        assert build_engine(model, options).bytes > 0

    def test_what_looks_at_planes_alone_says_so(self, make: Make) -> None:
        from tfswa.calibration.calibrate import check_planes_alone
        from tfswa.runtime.parity.instrument import open_instrument

        with pytest.raises(UsageError, match=r"also takes state\.decoder.* and 12 more"):
            check_planes_alone(make(20))

        with pytest.raises(UsageError, match=r"also takes state\.decoder.* and 12 more"):
            open_instrument(make(20), "ort", "fp32")


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"heads": [1]}, "heads"),
        ({"memory": 1}, "memory 1"),
        ({"window": 3}, "not a multiple of 24"),
        ({"dims": [8, 15]}, "dims 15"),
        ({"fold": 0}, "fold 0"),
        ({"depths": [1, -1]}, "depths"),
    ],
)
def test_what_cannot_be_built_is_refused(hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        small_spec(**hyper)
    assert "\n" not in str(error.value)


def test_state_of_another_network_is_refused() -> None:
    """Of a causal network with other shapes, and of a network without any."""
    other = dataclasses.replace(small_spec(), state={"stem": (2, 64, 8)})
    lite = new_spec("tfswa_lite")
    none = dataclasses.replace(lite, chunk=ChunkSpec(256, 5, 0, 64, 3, early=4), state={"a": (1,)})
    for spec in (other, none):
        with pytest.raises(ConfigError, match="make the specification with `tfx new`") as error:
            build_network(spec)
        assert "\n" not in str(error.value)
