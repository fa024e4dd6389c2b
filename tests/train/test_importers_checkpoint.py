"""``tfx import FILE``: which weights are meant, whether they fit, and that no code of a file is run."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx

from tfswa.runtime.errors import BundleError, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")
from safetensors.torch import save_file  # noqa: E402

from tfswa.train import families  # noqa: E402
from tfswa.train.backend import load_network  # noqa: E402
from tfswa.train.families import build_network, new_spec  # noqa: E402
from tfswa.train.importers.checkpoint import import_checkpoint  # noqa: E402
from tfswa.train.importers.reading import read_tensors  # noqa: E402

TEMPLATE = Path(__file__).parents[2] / "examples" / "my_family" / "my_family.py"
NAMES = ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]


@pytest.fixture
def my_family(register: Callable[..., None]) -> str:
    """The family of the template package, installed."""
    made = importlib.util.spec_from_file_location("my_family", TEMPLATE)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules["my_family"] = module  # dataclasses look their module up
    made.loader.exec_module(module)
    register(families, "my_family", module.MY_FAMILY)
    return "my_family"


@pytest.fixture
def state(my_family: str) -> dict[str, Any]:
    """A network's weights, none at its initial value."""
    network = build_network(new_spec(my_family))
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(v.shape, generator=generator) for name, v in network.state_dict().items()}


def same(bundle: Path, state: dict[str, Any], names: dict[str, str] | None = None) -> None:
    weights = Bundle.open(bundle).weights()
    names = names or {name: name for name in weights}
    assert weights.keys() == names.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, state[names[name]].numpy(), err_msg=name)


def test_a_state_dictionary_becomes_a_bundle_that_computes_the_same(
    tfx: Tfx, tmp_path: Path, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state, "my net é.pt")
    done = tfx("import", "my net é.pt", "--family", "my_family", "--license", "CC-BY-4.0")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "my net é.tfx: my_family, 442 parameters: vocals, accompaniment (weights CC-BY-4.0)",
        "4 tensors taken, 0 left out",
    ]
    same(Path("my net é.tfx"), state)
    model = open_model(Path("my net é.tfx"))
    network = build_network(model.spec).eval()
    network.load_state_dict(state)
    mixture = torch.randn(model.spec.input_shape(1), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():  # the same operations on the same weights
        assert torch.equal(load_network(model)(mixture), network(mixture))


@pytest.mark.parametrize("kind", ["safetensors", "legacy", "lightning", "wrapped", "compiled"])
def test_the_forms_that_weights_are_saved_in(
    tfx: Tfx, tmp_path: Path, state: dict[str, Any], kind: str
) -> None:
    path = tmp_path / "theirs"  # told by content, not by name
    key, prefix, left_out = "", "", []
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "lightning":
        key, prefix = "state_dict", "model."
        inner = OrderedDict((f"model.{name}", value) for name, value in state.items())
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
        torch.save({"epoch": 3, "state_dict": inner, "optimizer_states": [optimizer], "loops": {}}, path)
    elif kind == "wrapped":
        prefix, left_out = "module.", ["epoch"]
        torch.save({**{f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    else:
        prefix = "model."
        torch.save({f"model._orig_mod.{name}": value for name, value in state.items()}, path)
    done = tfx("import", path, "--family", "my_family", "-o", tmp_path / "new.tfx", "--json")
    assert (done.json["key"], done.json["prefix"], done.json["left_out"]) == (key, prefix, left_out)
    same(tmp_path / "new.tfx", state)
    provenance = Bundle.open(tmp_path / "new.tfx").provenance
    assert (provenance["checkpoint"], provenance["key"], provenance["prefix"]) == ("theirs", key, prefix)


def test_what_is_not_the_networks_is_left_out_when_that_is_said(
    tfx: Tfx, tmp_path: Path, state: dict[str, Any]
) -> None:
    inner = {**{f"model.{name}": value for name, value in state.items()}, "loss.window": torch.ones(4)}
    torch.save({"state_dict": inner}, tmp_path / "a.ckpt")
    line = ("import", tmp_path / "a.ckpt", "--family", "my_family", "-o", tmp_path / "a.tfx")
    done = tfx(*line)
    assert (done.code, done.lines) == (
        2,
        [
            f"tfx: {tmp_path / 'a.ckpt'} holds these weights under 'model.' and 1 other names (loss.window): "
            "take those alone with --prefix model."
        ],
    )
    assert not (tmp_path / "a.tfx").exists()
    for said in (("--prefix", "model"), ("--drop", "loss.")):
        done = tfx(*line, *said, "--force")
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[1] == (
            "in 'state_dict', prefix 'model.' removed, 4 tensors taken, 1 left out: loss.window"
        )
        same(tmp_path / "a.tfx", state)


def test_all_that_does_not_fit_is_a_table_and_a_line(tfx: Tfx, tmp_path: Path, state: dict[str, Any]) -> None:
    del state["layers.0.bias"]
    state["layers.2.bias"] = torch.zeros(3)
    state |= {f"more.{number}": torch.zeros(1) for number in range(5)}
    torch.save(state, tmp_path / "a.pt")
    done = tfx("import", tmp_path / "a.pt", "--family", "my_family", "-o", tmp_path / "a.tfx")
    assert (done.code, done.out) == (1, "")
    assert [line.split("  ")[0] for line in done.lines[2:-1]] == [
        "missing",
        "another shape",
        *["unexpected"] * 5,
    ]
    assert done.lines[-1:] == [
        f"tfx: {tmp_path / 'a.pt'} does not fit my_family: of 4 weights 1 missing (layers.0.bias), "
        "1 of another shape (layers.2.bias is [3], the network's [2]), "
        "5 unexpected (more.0, more.1, more.2 and 2 more): see to --config, --hyper, --stems, "
        "--prefix and --drop"
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_options_and_a_configuration_say_what_the_network_is(
    tfx: Tfx, tmp_path: Path, my_family: str
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        '[model]\nfamily = "my_family"\nstems = ["vocals", "drums", "other"]\nhyper = {width = 4}\n'
        'license = "MIT"\nresidual_stem = "other"\n'
        '[data]\nroot = "songs"\nsources = {vocals = ["vocals"], drums = ["drums"], other = ["other"]}\n'
    )
    spec = new_spec(my_family, stems=("a", "b", "c"), hyper={"width": 4})
    torch.save(build_network(spec).state_dict(), tmp_path / "a.pt")
    line = ("import", tmp_path / "a.pt", "--config", config, "--stft", "n_fft=2048")
    assert tfx(*line, "--chunk", "context=4", "-o", tmp_path / "a.tfx").code == 0
    made = Bundle.open(tmp_path / "a.tfx").spec
    assert (made.stems, made.hyper["width"]) == (("vocals", "drums", "other"), 4)
    assert (made.weights_license, made.residual_stem) == ("MIT", "other")
    assert (made.stft.n_fft, made.stft.hop, made.chunk.context, made.chunk.frames) == (2048, 1024, 4, 128)
    options = ("--license", "CC0-1.0", "--stems", "x, y,other", "-o", tmp_path / "b.tfx")
    assert tfx(*line, *options).code == 0
    made = Bundle.open(tmp_path / "b.tfx").spec
    assert (made.stems, made.weights_license) == (("x", "y", "other"), "CC0-1.0")
    config.write_text(config.read_text().replace("[data]", 'network_stems = ["vocals", "drums"]\n[data]'))
    spec = new_spec(my_family, stems=("a", "b"), hyper={"width": 4})
    torch.save(build_network(spec).state_dict(), tmp_path / "two.pt")
    assert tfx(line[0], tmp_path / "two.pt", *line[2:], "-o", tmp_path / "two.tfx").code == 0
    assert Bundle.open(tmp_path / "two.tfx").spec.outputs == ("vocals", "drums")
    done = tfx(*line, "--hyper", "width=5", "-o", tmp_path / "c.tfx")
    assert done.code == 1
    assert "layers.0.weight is [4, 4, 3, 3], the network's [5, 4, 3, 3]" in done.lines[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_kind_are_stored_as_asked(tmp_path: Path, state: dict[str, Any], dtype: Any) -> None:
    cast = {name: value.to(dtype) for name, value in state.items()}
    torch.save(cast, tmp_path / "a.pt")
    bundle, _ = import_checkpoint(tmp_path / "a.pt", new_spec("my_family"), tmp_path / "a.tfx")
    for name, value in bundle.weights().items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, cast[name].float().numpy())


class Attack:
    """What a pickle can do to who loads it."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_in_one_line_and_not_run(
    tfx: Tfx, tmp_path: Path, state: dict[str, Any], zipped: bool
) -> None:
    attack = {**state, "x": Attack(tmp_path / "owned")}
    torch.save(attack, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    done = tfx("import", tmp_path / "a.pt", "--family", "my_family", "-o", tmp_path / "a.tfx")
    assert (done.code, done.out) == (1, "")
    assert done.lines == [
        f"tfx: {tmp_path / 'a.pt'} asks for posix.mkdir, which is code and no weights: it was not run; "
        "save network.state_dict() alone, or safetensors"
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def damaged(path: Path, state: dict[str, Any], kind: str) -> None:
    if kind == "text":
        path.write_text("no weights")
    elif kind == "empty":
        path.touch()
    elif kind == "half":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "half of safetensors":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "torchscript":
        torch.jit.save(torch.jit.trace(torch.nn.Conv1d(1, 1, 1), torch.zeros(1, 1, 2)), path)
    elif kind == "list":
        torch.save(list(state.values()), path)
    elif kind == "numbers":
        torch.save({"epoch": 3, "loss": 0.5}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"layers.0.bias": 1.0}, protocol=5))
    elif kind == "nan":
        torch.save({**state, "layers.0.bias": state["layers.0.bias"] / 0 * 0}, path)
    elif kind == "sparse":
        torch.save({**state, "layers.0.bias": state["layers.0.bias"].to_sparse()}, path)
    else:
        raise AssertionError(kind)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("text", "is no state dictionary of torch and no safetensors"),
        (
            "pickle",
            "is no state dictionary of torch and no safetensors, or damaged: Unsupported operand 149\n",
        ),
        ("empty", "is no state dictionary of torch and no safetensors"),
        ("half", "is not a file of torch, or damaged"),
        ("half of safetensors", "is no state dictionary of torch and no safetensors"),
        ("torchscript", "is no state dictionary of torch and no safetensors"),
        ("list", "holds a list: save network.state_dict()"),
        ("numbers", "holds no weights (epoch, loss)"),
        ("nan", "layers.0.bias is not finite in fp32"),
        ("sparse", "layers.0.bias is no plain tensor of real numbers"),
    ],
)
def test_what_holds_no_weights_is_one_line(
    tfx: Tfx, tmp_path: Path, state: dict[str, Any], kind: str, says: str
) -> None:
    damaged(tmp_path / "a.pt", state, kind)
    done = tfx("import", tmp_path / "a.pt", "--family", "my_family", "-o", tmp_path / "a.tfx")
    assert (done.code, done.out, len(done.lines)) == (1, "", 1)
    assert says in done.err
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_what_a_compiler_adds_to_a_name_is_no_part_of_it(tmp_path: Path, state: dict[str, Any]) -> None:
    spec, path = new_spec("my_family"), tmp_path / "a.pt"
    first, *_ = state
    inside = {name.replace(".", "._orig_mod.", 1): value for name, value in state.items()}
    assert inside.keys() != state.keys()
    torch.save(
        {f"net.{name}": value for name, value in inside.items()} | {"_orig_mod.ema": torch.ones(1)}, path
    )
    for options in ({"prefix": "net"}, {"prefix": "_orig_mod.net."}, {"drop": ["_orig_mod.ema"]}):
        import_checkpoint(path, spec, tmp_path / "a.tfx", force=True, **options)
        same(tmp_path / "a.tfx", state)
    torch.save(state | {f"_orig_mod.{first}": state[first]}, path)
    with pytest.raises(BundleError, match=rf"of one name compiled and not compiled \(_orig_mod\.{first}\)"):
        import_checkpoint(path, spec, tmp_path / "b.tfx")


def test_what_could_be_meant_twice_is_asked_for(tmp_path: Path, state: dict[str, Any]) -> None:
    spec, path = new_spec("my_family"), tmp_path / "a.pt"
    average = {name: value + 1 for name, value in state.items()}
    torch.save({"model": state, "ema": average}, path)
    with pytest.raises(UsageError, match=r"several state dictionaries \(model, ema\): choose with --key"):
        import_checkpoint(path, spec, tmp_path / "a.tfx")
    with pytest.raises(
        UsageError, match=r"no state dictionary 'emma', did you mean 'ema'\?; it holds model, ema"
    ):
        import_checkpoint(path, spec, tmp_path / "a.tfx", key="emma")
    import_checkpoint(path, spec, tmp_path / "a.tfx", key="ema")
    same(tmp_path / "a.tfx", average)

    both = {
        f"{prefix}.{n}": v for prefix, part in (("net", state), ("ema", average)) for n, v in part.items()
    }
    torch.save(both, path)
    with pytest.raises(
        UsageError, match=r"these weights 2 times, under 'ema\.', 'net\.': choose with --prefix"
    ):
        import_checkpoint(path, spec, tmp_path / "b.tfx")
    _, picked = import_checkpoint(path, spec, tmp_path / "b.tfx", prefix="ema.")
    same(tmp_path / "b.tfx", both, {name: f"ema.{name}" for name in NAMES})
    assert picked.left_out == tuple(sorted(f"net.{name}" for name in NAMES))
    with pytest.raises(UsageError, match=r"no name that begins with 'model\.'; it holds net\.layers"):
        import_checkpoint(path, spec, tmp_path / "c.tfx", prefix="model")


def test_requests_that_cannot_be_honored(tfx: Tfx, tmp_path: Path, state: dict[str, Any]) -> None:
    torch.save(state, tmp_path / "a.pt")
    there = tmp_path / "there.tfx"
    there.mkdir()
    for words, says in (
        ((tmp_path / "a.pt",), "name the network's --family, or its training --config"),
        ((tmp_path / "none.pt", "--family", "my_family"), "no such file"),
        (("", "--family", "my_family"), "an empty path"),
        ((tmp_path / "a.pt", "--family", "my_famly"), "did you mean 'my_family'"),
        ((tmp_path / "a.pt", "--family", "my_family", "--hyper", "widht=4"), "did you mean 'width'"),
        ((tmp_path / "a.pt", "--family", "my_family", "--stft", "n_ft=4"), "did you mean 'n_fft'"),
        (
            (tmp_path / "a.pt", "--family", "my_family", "--chunk", "frames=0"),
            "frames 0 must be int, above 0",
        ),
        ((tmp_path / "a.pt", "--family", "my_family", "-o", there), "is there already"),
        ((tmp_path / "a.pt", "--config", tmp_path / "x.toml"), "no such file"),
    ):
        done = tfx("import", *words)
        assert (done.code, done.out) == (2, ""), words
        assert says in done.lines[-1], words


def test_a_declared_size_takes_no_memory(tmp_path: Path, state: dict[str, Any]) -> None:
    """A view of one number can claim any shape: it is compared before it is copied."""
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({**state, "layers.0.bias": huge}, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt")["layers.0.bias"].shape == huge.shape
    with pytest.raises(BundleError, match="1 of another shape"):
        import_checkpoint(tmp_path / "a.pt", new_spec("my_family"), tmp_path / "a.tfx")


def test_the_weights_of_a_run_come_back(tfx: Tfx, tmp_path: Path, my_family: str) -> None:
    """``--config RUN``: what a run wrote down is what its weights are of."""
    run = tmp_path / "run"
    run.mkdir()
    model = {"family": "my_family", "hyper": {"width": 3}, "stems": ["a", "b"]}
    config = {"model": model, "data": {"root": "x", "sources": {"a": ["a"], "b": ["b"]}}}
    (run / "config.json").write_text(json.dumps(config))
    state = build_network(new_spec(my_family, stems=("a", "b"), hyper={"width": 3})).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    line = ("import", tmp_path / "a.safetensors", "--config", run, "-o", tmp_path / "a.tfx")
    assert tfx(*line).code == 0
    same(tmp_path / "a.tfx", state)
