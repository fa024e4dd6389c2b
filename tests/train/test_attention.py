"""Attention maps: the weights that the network used, of every module, without touching what it computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.model.spec import ModelSpec

torch = pytest.importorskip("torch", reason="torch is not installed: networks need it")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tfswa.train import attention  # noqa: E402
from tfswa.train.attention import attention_maps  # noqa: E402
from tfswa.train.blocks.attention import TimeAttention, rotary_tables  # noqa: E402
from tfswa.train.blocks.window import WindowAttention, shift_masks  # noqa: E402
from tfswa.train.families import build_network  # noqa: E402


@pytest.fixture
def network(tiny_spec: ModelSpec) -> Any:
    return seeded(build_network(tiny_spec))


@pytest.fixture
def planes(tiny_spec: ModelSpec) -> Any:
    torch.manual_seed(1)
    return torch.randn(tiny_spec.input_shape(1))


def seeded(network: Any) -> Any:
    """Weights large enough that attention is not nearly uniform."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


class Calls(nn.Module):  # type: ignore[misc]
    """Calls fused attention with given arguments, as some other family would."""

    def __init__(self, *calls: dict[str, Any]):
        super().__init__()
        self.calls = calls

    def forward(self, planes: Any) -> Any:
        for call in self.calls:
            functional.scaled_dot_product_attention(**call)
        return planes


def weights_of(call: dict[str, Any]) -> Any:
    """Weights of a call by way of its output: the values are the unit vectors."""
    places = call["key"].shape[-2]
    heads = call["query"].shape[:-2] if call.get("enable_gqa") is None else call["key"].shape[:-2]
    eye = torch.eye(places).expand(*heads, places, places)
    out = functional.scaled_dot_product_attention(**{**call, "value": eye})
    return out.reshape(-1, *out.shape[-2:]).mean(dim=0).numpy()


def test_every_module_has_a_map_and_rows_sum_to_1(network: Any, planes: Any) -> None:
    maps = attention_maps(network, planes)
    assert {name: found.shape for name, found in maps.items()} == {
        "encoder.0.blocks.0.window": (16, 16),
        "encoder.1.blocks.0.time": (8, 8),
        "encoder.1.blocks.0.frequency": (32, 32),
        "encoder.1.blocks.0.window": (16, 16),
        "decoder.0.blocks.0.window": (16, 16),
    }
    for found in maps.values():
        assert found.dtype == np.float32
        assert found.min() >= 0
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
        assert found.max() > 1.1 / found.shape[1]  # or constants would do as well


def test_cross_attention_is_named_too(tiny_spec: ModelSpec, planes: Any, tiny_hyper: dict[str, Any]) -> None:
    import dataclasses

    spec = dataclasses.replace(tiny_spec, hyper={**tiny_hyper, "fusion": "cross"})
    maps = attention_maps(build_network(spec).eval(), planes)
    assert maps["encoder.1.blocks.0.fusion.time"].shape == (8, 8)
    assert maps["encoder.1.blocks.0.fusion.frequency"].shape == (32, 32)


@torch.no_grad()  # with gradients torch takes another kernel
def test_the_network_is_left_as_it_was(network: Any, planes: Any) -> None:
    before = network(planes)
    seen = []
    handle = network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    first = attention_maps(network, planes)
    handle.remove()
    assert torch.equal(seen[0], before)
    assert torch.equal(network(planes), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    second = attention_maps(network, planes)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_hooks_are_gone_after_an_error(network: Any, planes: Any) -> None:
    with pytest.raises(RuntimeError):
        attention_maps(network, planes[:, :1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_time_attention_by_hand() -> None:
    module = seeded(TimeAttention(8, 2))
    x = torch.randn(3, 6, 8)  # [B*F, T, D]
    query, key = module.query(module.norm(x)), module.key_value(module.norm(x))[..., :8]
    cos, sin = rotary_tables(6, 4, x.device)
    expected = np.zeros((6, 6))
    for f in range(3):
        for head in range(2):
            pair = []
            for side in (query, key):
                part = side[f, :, 4 * head : 4 * head + 4]  # [T, 4]
                turned = torch.cat((-part[:, 2:], part[:, :2]), dim=1)
                pair.append(part * cos + turned * sin)
            expected += ((pair[0] @ pair[1].T) / 2).softmax(dim=1).detach().numpy() / 6
    (found,) = attention_maps(module, x).values()
    np.testing.assert_allclose(found, expected, atol=1e-6)


class Windows(torch.nn.Module):
    """Window attention on a plane of ``rows`` times ``columns`` windows."""

    def __init__(self, shift: int, rows: int, columns: int):
        super().__init__()
        self.attention, self.plane = seeded(WindowAttention(8, 2, size=4, shift=shift)), (rows, columns)

    def forward(self, x: Any) -> Any:
        return self.attention(x, *self.plane)


def test_a_shifted_window_respects_the_mask() -> None:
    (corner,) = attention_maps(Windows(2, 1, 1), torch.randn(1, 16, 8)).values()  # one window: the corner
    apart = shift_masks(4, 2)[3].numpy() < 0
    assert apart.sum() == 16 * 12
    assert corner[apart].max() < 1e-40  # MASKED is a score of -100
    assert corner[~apart].min() > 0
    (plain,) = attention_maps(Windows(0, 1, 1), torch.randn(1, 16, 8)).values()
    assert plain.min() > 0


def test_a_shifted_plane_is_the_mean_of_its_windows() -> None:
    (found,) = attention_maps(Windows(2, 2, 3), torch.randn(6, 16, 8)).values()
    apart = shift_masks(4, 2).numpy() < 0  # inner, last column, last row, corner
    assert (found[apart[1] & apart[2]] > 0).all()  # an inner window lets all attend
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def calls() -> dict[str, dict[str, Any]]:
    torch.manual_seed(0)
    q, k = torch.randn(3, 2, 5, 4) * 2, torch.randn(3, 2, 7, 4) * 2
    one = {"query": q, "key": k, "value": k}
    grouped = torch.randn(3, 4, 5, 4)
    return {
        "plain": one,
        "scale": {**one, "scale": 0.1},
        "causal": {"query": q, "key": q, "value": q, "is_causal": True},
        "bool mask": {**one, "attn_mask": torch.rand(5, 7) > 0.5},
        "mask per head": {**one, "attn_mask": torch.randn(1, 2, 5, 7)},
        "mask per item": {**one, "attn_mask": torch.randn(3, 1, 5, 7)},
        "three axes": {name: value[:, 0] for name, value in one.items()},
        "two axes": {name: value[0, 0] for name, value in one.items()},
        "grouped": {"query": grouped, "key": k, "value": k, "enable_gqa": True},
        "half": {name: value.half() for name, value in one.items()},
    }


@pytest.mark.parametrize("name", list(calls()))
def test_all_ways_to_call_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls()[name]
    if name == "bool mask":
        call["attn_mask"][:, 0] = True  # a row without any place has no weights
    expected = weights_of({key: v.float() if name == "half" else v for key, v in call.items()})
    (whole,) = attention_maps(Calls(call), torch.zeros(1)).values()
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    monkeypatch.setattr(attention, "SLICE", 80)  # two of the six at once
    (sliced,) = attention_maps(Calls(call), torch.zeros(1)).values()
    np.testing.assert_allclose(sliced, whole, atol=1e-7)


def test_several_calls_of_a_module_have_names_of_their_own() -> None:
    call = calls()["plain"]
    network = nn.Sequential(Calls(call, call), Calls(call))
    assert list(attention_maps(network, torch.zeros(1))) == ["0", "0.2", "1"]


def test_no_attention_gives_no_maps() -> None:
    assert attention_maps(nn.Linear(2, 2), torch.zeros(1, 2)) == {}


class Largest(TorchDispatchMode):  # type: ignore[misc]
    """Remembers the size in bytes of the largest array that was made, views of the given ones aside."""

    def __init__(self, *given: Any):
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.given:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


def test_memory_is_bounded() -> None:
    query = torch.randn(1, 700, 64, 8)  # 2.9 million weights; masked by one plane for all
    mask = torch.randn(1, 1, 64, 64).expand(1, 700, 64, 64)
    with Largest(query, mask) as largest, torch.no_grad():
        attention._mean_weights(query, query, query, attn_mask=mask)
    assert math.prod(mask.shape) > attention.SLICE
    assert attention.SLICE <= largest.bytes <= 4 * attention.SLICE
