"""Fine-tuning: what a configuration takes from a bundle, what is frozen, and changes of low rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ChunkSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")
pytest.importorskip("lightning_fabric", reason="Fabric is not installed: training needs it")

from tfswa.train.adapting import adapt, keep_still, merged  # noqa: E402
from tfswa.train.config import ModelConfig  # noqa: E402
from tfswa.train.config_files import config_of, load_run_config  # noqa: E402
from tfswa.train.families import build_network, new_spec  # noqa: E402
from tfswa.train.loop import train  # noqa: E402

CPU = torch.device("cpu")
HYPER: dict[str, Any] = {"dim": 8, "depth": 1, "heads": 2, "dim_head": 4, "widths": [2, 2, 4, 8, 17]}


@pytest.fixture
def held(tmp_path: Path) -> Bundle:
    """A bundle as an import leaves it: one stem, a transform that is not the family's."""
    spec = new_spec(
        "roformer",
        stems=("vocals", "accompaniment"),
        hyper=HYPER,
        stft=StftSpec(64, 16, padding="reflect", seen=(0, 33)),
        chunk=ChunkSpec(200, context=8, fade=4, multiple=1),
        network_stems=("vocals",),
        residual_stem="accompaniment",
        weights_license="MIT",
    )
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in build_network(spec).state_dict().items()}
    return Bundle.create(tmp_path / "held.tfx", spec, weights)


def values(root: Path, cache: Path, bundle: Bundle, **model: Any) -> dict[str, Any]:
    """A configuration that names no family."""
    return {
        "model": {"init": str(bundle.path), **model},
        "data": {"root": str(root), "validation": ["C"], "cache": str(cache), "workers": 0},
        "loss": {"windows": [128, 512]},
        "optim": {"length": 2, "batch": 2, "frames": 40, "lr": 1e-2, "warmup": 0},
        "run": {
            "log_every": 1,
            "validate_every": 2,
            "checkpoint_every": 2,
            "validation_seconds": 1,
            "statistics_batches": 1,
            "pictures": False,
        },
    }


def changed_weights(before: Bundle, after: Path) -> set[str]:
    """Names of the weights that a training changed; all others are the same, bit for bit."""
    old, new = before.weights(), Bundle.open(after).weights()
    assert old.keys() == new.keys()
    return {name for name in old if not np.array_equal(old[name], new[name])}


def test_what_is_not_said_is_the_bundles(
    held: Bundle, song_root: Path, private_cache: Path, tmp_path: Path
) -> None:
    config = config_of(values(song_root, private_cache, held), (), tmp_path)
    train(config, tmp_path / "run", device=CPU)
    spec = Bundle.open(tmp_path / "run" / "last.tfx").spec
    assert spec == held.spec
    assert changed_weights(held, tmp_path / "run" / "last.tfx") == held.weights().keys()
    assert load_run_config(tmp_path / "run") == config  # complete: it does without the bundle
    named = config_of(
        values(song_root, private_cache, held, license="CC0-1.0", chunk={"frames": 100}), (), tmp_path
    )
    assert (named.model.license, named.model.chunk["frames"], named.model.chunk["fade"]) == (
        "CC0-1.0",
        100,
        4,
    )


def test_frozen_weights_stay(held: Bundle, song_root: Path, private_cache: Path, tmp_path: Path) -> None:
    given = values(song_root, private_cache, held, frozen=["band_split.", "layers."])
    train(config_of(given, (), tmp_path), tmp_path / "run", device=CPU)
    found = changed_weights(held, tmp_path / "run" / "last.tfx")
    assert found == {name for name in held.weights() if name.startswith(("final_norm.", "mask_estimators."))}


def test_changes_of_low_rank_are_in_the_weights_of_the_bundle(
    held: Bundle, song_root: Path, private_cache: Path, tmp_path: Path
) -> None:
    given = values(song_root, private_cache, held, lora_rank=2, lora=["to_qkv", "to_out"])
    config = config_of(given, (), tmp_path)
    train(config, tmp_path / "run", device=CPU)
    after = tmp_path / "run" / "last.tfx"
    found = changed_weights(held, after)
    assert found == {name for name in held.weights() if "to_qkv" in name or "to_out" in name}
    old, new = held.weights(), Bundle.open(after).weights()
    for name in found:
        assert np.linalg.matrix_rank(new[name] - old[name], tol=1e-5) <= 2, name
    more = config_of({**given, "optim": {**given["optim"], "length": 4}}, (), tmp_path)
    train(more, tmp_path / "run", device=CPU, resume=True)
    assert not np.array_equal(Bundle.open(after).weights()[min(found)], new[min(found)])


def test_other_stems_get_heads(held: Bundle, song_root: Path, private_cache: Path, tmp_path: Path) -> None:
    """What begins with random weights is trained whole, beside changes of low rank."""
    given = values(
        song_root,
        private_cache,
        held,
        stems=["vocals", "accompaniment"],
        init_skip=["mask_estimators."],
        lora_rank=1,
        lora=["to_qkv"],
    )
    train(config_of(given, (), tmp_path), tmp_path / "run", device=CPU)
    after = Bundle.open(tmp_path / "run" / "last.tfx")
    assert (after.spec.outputs, after.spec.residual_stem) == (("vocals", "accompaniment"), None)
    old, new = held.weights(), after.weights()
    assert {name.split(".")[1] for name in new if name.startswith("mask_estimators.")} == {"0", "1"}
    same = {name for name in old.keys() & new.keys() if np.array_equal(old[name], new[name])}
    assert same == {name for name in old if not name.startswith("mask_estimators.") and "to_qkv" not in name}


def test_a_change_of_low_rank_is_nothing_at_first_and_their_sum_at_the_end() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapt(network, ModelConfig(family="mine", lora_rank=2, lora=("0",)))
    assert {name for name, value in network.named_parameters() if value.requires_grad} == {
        "0.parametrizations.weight.0.a",
        "0.parametrizations.weight.0.b",
    }
    found = merged(network.state_dict())
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in before.items()
    }
    with torch.no_grad():
        network[0].parametrizations.weight[0].b.fill_(1.0)
    x = torch.randn(5, 4)
    plain = torch.nn.functional.linear(x, merged(network.state_dict())["0.weight"], before["0.bias"])
    torch.testing.assert_close(network[0](x), plain)
    network.train()
    keep_still(network)
    network(x)
    assert network[1].num_batches_tracked == 0  # its statistics are frozen with its weights


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"frozen": ("layer.",)}, r"model\.frozen 'layer\.' begins the name of no weight of mine"),
        ({"frozen": ("0.", "1.")}, "leaves nothing of mine to train"),
        ({"lora_rank": 1, "lora": ("qkv",)}, r"model\.lora 'qkv' is in the name of no linear layer"),
        ({"lora_rank": 1}, r"model\.lora_rank 1 without model\.lora: .* which are 0"),
        ({"lora_rank": 4, "lora": ("0",)}, r"model\.lora_rank 4 is more than 0 has room for, 3"),
    ],
)
def test_what_cannot_be_trained_is_refused(model: dict[str, Any], says: str) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match=says) as error:
        adapt(network, ModelConfig(family="mine", **model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"lora": ["to_qkv"]}, "model.lora_rank 0 and model.lora"),
        ({"lora_rank": -1}, "model.lora_rank -1"),
        ({"stft": {"hop": 0}}, "hop 0 must be int, above 0"),
        ({"chunk": {"frame": 3}}, "did you mean 'frames'"),
    ],
)
def test_configurations_that_cannot_be(
    held: Bundle, song_root: Path, private_cache: Path, tmp_path: Path, model: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        train(
            config_of(values(song_root, private_cache, held, **model), (), tmp_path),
            tmp_path / "run",
            device=CPU,
        )
    assert says in str(error.value)
