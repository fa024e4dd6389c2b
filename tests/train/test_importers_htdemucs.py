"""Published HTDemucs: files of the package read without its code, and what names and shapes tell."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx

from tfswa.runtime.errors import BundleError, ConfigError, TfxError, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ModelSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")
from hybrids import recorded  # noqa: E402  # it finds the folder of the vectors
from make_htdemucs import CASES, FILE, SMALL, weight  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tfswa.train.families import build_network, new_spec  # noqa: E402
from tfswa.train.families.htdemucs import STEMS  # noqa: E402
from tfswa.train.importers.checkpoint import import_checkpoint  # noqa: E402
from tfswa.train.importers.demucs import CLASS  # noqa: E402
from tfswa.train.importers.htdemucs import HTDEMUCS, read_htdemucs  # noqa: E402
from tfswa.train.importers.kinds import Settings, recognized, spec_of_reading  # noqa: E402
from tfswa.train.importers.reading import read_weights  # noqa: E402

TINY: dict[str, Any] = {"channels": 8, "bottom_channels": 8, "dconv_depth": 1, "t_layers": 2, "t_heads": 2}
# A level more than the tests of the family have: the transform is that of the published networks.
MADE_WITH: dict[str, Any] = {"sources": list(STEMS), "samplerate": 44_100, "segment": Fraction(39, 5), **TINY}


@pytest.fixture
def spec() -> ModelSpec:
    return new_spec("htdemucs", stems=STEMS, hyper=TINY)


@pytest.fixture
def state(spec: ModelSpec) -> dict[str, Any]:
    values = build_network(spec).state_dict()
    return {name: torch.from_numpy(weight(name, tuple(value.shape))) for name, value in values.items()}


@pytest.fixture
def network_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of the package's name, that pickles as the package's does."""
    module = types.ModuleType("demucs.htdemucs")
    made: type = type("HTDemucs", (), {"__module__": "demucs.htdemucs"})
    module.HTDemucs = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "demucs", types.ModuleType("demucs"))
    monkeypatch.setitem(sys.modules, "demucs.htdemucs", module)
    return made


def package(klass: type, state: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What the package saves: weights in half precision, and how its class was called."""
    half = {name: value.half() for name, value in state.items()}
    made = {"klass": klass, "args": (), "kwargs": MADE_WITH, "state": half, "training_args": {"lr": 3e-4}}
    return {**made, **more}


def known_as(state: Mapping[str, Any], config: Mapping[str, Any], **more: Any) -> ModelSpec:
    """The contract that a file is found to have."""
    found = recognized(list(state))
    assert found is not None
    kind, prefix = found
    assert kind.name == HTDEMUCS.name
    shapes = {name.removeprefix(prefix): tuple(value.shape) for name, value in state.items()}
    settings = Settings(config=config, **more)
    return spec_of_reading(kind, "theirs.th", kind.read(shapes, settings), settings)


@pytest.mark.parametrize("form", ["zip", "legacy", "args", "safetensors"])
def test_a_file_of_the_package_is_read_without_the_package(
    tmp_path: Path,
    state: dict[str, Any],
    network_class: type,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    spec: ModelSpec,
) -> None:
    path = tmp_path / "955717e8 é.th"
    if form == "safetensors":
        segment = {"_type": "fraction", "numerator": 39, "denominator": 5}
        about = {"klass": CLASS, "args": "[]", "kwargs": json.dumps({**MADE_WITH, "segment": segment})}
        save_file({name: value.half() for name, value in state.items()}, path, about)
    else:
        kwargs = {name: value for name, value in MADE_WITH.items() if name != "sources"}
        more = {"args": (list(STEMS),), "kwargs": kwargs} if form == "args" else {}
        content = package(network_class, state, **more)
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    for name in ("demucs", "demucs.htdemucs"):
        monkeypatch.delitem(sys.modules, name)
    loaded, config = read_weights(path)
    weights = loaded["state"]
    assert not {name for name in sys.modules if name.startswith("demucs")}
    assert config["htdemucs"] == {**MADE_WITH, "segment": 7.8}
    found = known_as(weights, config)
    assert found.hyper == {**spec.hyper, "track_level": 0.2}
    assert (found.stems, found.stft, found.chunk) == (STEMS, spec.stft, spec.chunk)
    assert found.unseen_stem is None
    arrays = {name: value.float().numpy() for name, value in weights.items()}
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in build_network(found).state_dict().items()}
    assert {name: value.shape for name, value in arrays.items()} == wanted
    half = state["encoder.0.conv.weight"].half().float().numpy()
    np.testing.assert_array_equal(arrays["encoder.0.conv.weight"], half)


@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_the_command_needs_no_configuration(
    tfx: Tfx, tmp_path: Path, state: dict[str, Any], network_class: type, spec: ModelSpec, form: str
) -> None:
    path = tmp_path / "955717e8.th"
    if form == "pickle":
        torch.save(package(network_class, state), path)
    else:
        segment = {"_type": "fraction", "numerator": 39, "denominator": 5}
        about = {"klass": CLASS, "args": "[]", "kwargs": json.dumps({**MADE_WITH, "segment": segment})}
        save_file(state, path, about)
    told = tfx("import", path, "-o", tmp_path / "a.tfx", "--json").json
    assert (told["stems"], told["key"], told["left_out"]) == (list(STEMS), "state", [])
    assert Bundle.open(tmp_path / "a.tfx").spec.hyper == {**spec.hyper, "track_level": 0.2}
    torch.save({**package(network_class, state), "klass": Fraction}, path)
    done = tfx("import", path, "-o", tmp_path / "b.tfx")
    assert (done.code, len(done.lines)) == (1, 1)
    assert "only demucs.htdemucs.HTDemucs is read here" in done.err


def test_no_code_of_a_pickle_is_run(tmp_path: Path, state: dict[str, Any], network_class: type) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch '{tmp_path}/ran'",)

    class Called:
        def __reduce__(self) -> Any:
            return network_class, (["vocals"],)

    class Huge:
        def __reduce__(self) -> Any:
            return Fraction, ("1e999999999",)

    path = tmp_path / "evil.th"
    for more, says in (
        ({"training_args": Evil()}, "asks for posix.system, which is code and no weights"),
        ({"klass": Called()}, "is no state dictionary of torch and no safetensors, or damaged"),
        ({"kwargs": {"segment": Huge()}}, "a fraction that is no length in seconds"),
        ({"klass": dict}, "asks for dict, which is code and no weights"),
    ):
        torch.save({**package(network_class, state), **more}, path)
        with pytest.raises(BundleError, match=says) as error:
            read_weights(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_such_file_is_refused_in_one_line(
    tmp_path: Path, state: dict[str, Any], network_class: type
) -> None:
    path, made = tmp_path / "theirs.th", package(network_class, state)
    for content, says in (
        ({**made, "state": {"__quantized": True}}, "packed by diffq"),
        ({**made, "state": {"a": 1}}, "holds no weights under 'state'"),
        ({**made, "args": (1, 2)}, "args and kwargs are no such"),
    ):
        torch.save(content, path)
        with pytest.raises(BundleError, match=says) as error:
            read_weights(path)
        assert "\n" not in str(error.value)
    save_file(state, path, {"klass": "demucs.hdemucs.HDemucs"})
    with pytest.raises(BundleError, match=r"its class is 'demucs\.hdemucs\.HDemucs'"):
        read_weights(path)
    path.write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(BundleError):
        read_weights(path)


def test_a_plain_state_dictionary_and_a_training_suites_yaml(
    tmp_path: Path, state: dict[str, Any], spec: ModelSpec
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state": {f"module.{name}": value for name, value in state.items()}}, path)
    named = ["a", "b", "c", "d"]
    config = {
        "audio": {"chunk_size": 485_100},
        "training": {"instruments": named, "samplerate": 44_100, "channels": 2, "segment": 11},
        "model": "htdemucs",
        "htdemucs": {"nfft": 4096, "cac": True, "t_heads": 4, "multi_freqs": [], "freq_emb": 0.3},
        "inference": {"num_overlap": 4},
    }
    found = known_as({f"module.{name}": value for name, value in state.items()}, config)
    assert found.hyper == {**spec.hyper, "t_heads": 4, "freq_emb": 0.3}
    assert (found.stems, found.chunk.frames) == (tuple(named), 474)  # 11 s, the last hop filled up
    bundle, _ = import_checkpoint(path, found, tmp_path / "new.tfx")
    weights = Bundle.open(bundle.path).weights()
    assert weights.keys() == state.keys()
    np.testing.assert_array_equal(weights["freq_emb.embedding.weight"], state["freq_emb.embedding.weight"])
    # Without a word about it: the package's own length, stems and numbers.
    bare = known_as(state, {})
    assert (bare.stems, bare.chunk, bare.stft, bare.hyper["t_heads"]) == (STEMS, spec.chunk, spec.stft, 8)


@pytest.mark.parametrize("case", CASES)
def test_shapes_tell_what_they_show(case: str) -> None:
    """Every network that vectors were recorded of, from its shapes and what they do not show."""
    own = {"bottom_channels": 0, **SMALL, **CASES[case]}
    audio = own.pop("audio_channels", 2)
    network = recorded(case)
    with torch.device("meta"):
        shapes = {name: tuple(v.shape) for name, v in build_network(network).state_dict().items()}
    with np.load(FILE) as vectors:
        assert shapes.keys() == {str(key) for key in vectors[f"{case}_keys"]}
    found = read_htdemucs(shapes, Settings(config={"htdemucs": {"nfft": network.stft.n_fft, **own}}))
    assert (found.channels, found.outputs, found.stft) == (audio, 2, network.stft)
    silent = {"dconv_comp"} if case == "narrow" else set()
    for name, value in own.items():
        if name not in silent:
            assert found.hyper[name] == value, name


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"htdemucs": {"t_emb": "cape"}}, r"htdemucs\.t_emb 'cape' of the configuration is not computed"),
        ({"htdemucs": {"cac": False}}, r"htdemucs\.cac False"),
        ({"htdemucs": {"multi_freqs": [0.5]}}, r"htdemucs\.multi_freqs \[0\.5\]"),
        ({"htdemucs": {"nfft": 2048}}, r"htdemucs\.nfft 2048 of the configuration: the weights are of 4096"),
        ({"training": {"segment": "long"}}, r"training\.segment 'long' of the configuration is no length"),
        ({"training": {"segment": 1e300}}, r"training\.segment 1e\+300"),
        ({"training": {"instruments": ["a", "b"]}}, "2 stems are named"),
    ],
)
def test_configurations_that_contradict_are_refused(
    state: dict[str, Any], config: dict[str, Any], says: str
) -> None:
    with pytest.raises((ConfigError, UsageError), match=says) as error:
        known_as(state, config)
    assert "\n" not in str(error.value)


def test_shapes_that_no_such_network_has_are_refused(state: dict[str, Any]) -> None:
    for name, value, says in (
        ("tencoder.0.conv.weight", torch.zeros(9, 2, 8), "of no network that takes spectra"),
        ("tdecoder.3.conv_tr.weight", None, "missing, 3 axes are needed: it is another network"),
        ("crosstransformer.layers.0.linear1.weight", torch.zeros(3), "2 axes are needed"),
    ):
        changed = {key: found for key, found in state.items() if key != name}
        changed |= {} if value is None else {name: value}
        with pytest.raises(TfxError, match=says) as error:
            known_as(changed, {})
        assert "\n" not in str(error.value)
