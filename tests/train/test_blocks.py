"""Blocks against the plainest statement of what they are, token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: blocks need it")

from tfswa.train.blocks import window as window_module  # noqa: E402
from tfswa.train.blocks.attention import (  # noqa: E402
    CrossAttention,
    FrequencyAttention,
    Mlp,
    TimeAttention,
    from_bins,
    over_bins,
    over_frames,
    rotary_tables,
)
from tfswa.train.blocks.conv import ResidualConv, fold, unfold  # noqa: E402
from tfswa.train.blocks.window import WindowAttention, cut, join_windows, relative_index, shift_masks  # noqa: E402

Tensor = Any


def randomized(module: Any, seed: int = 0) -> Any:
    """Weights large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_plane(block: Any, x: Tensor) -> Tensor:
    """Window attention from plane to plane, ``[B, T, F, D]``."""
    plane = block.plane(x)
    return join_windows(block(cut(x, block.size, block.shift), *plane), block.size, block.shift, *plane)


def tsa(block: Any, x: Tensor, source: Tensor | None = None) -> Tensor:
    """Time attention from plane to plane."""
    asked = None if source is None else over_bins(source)
    return from_bins(block(over_bins(x), asked), len(x))


def fsa(block: Any, x: Tensor, embedding: Tensor, source: Tensor | None = None) -> Tensor:
    """Frequency attention from plane to plane."""
    asked = None if source is None else over_frames(source)
    return block(over_frames(x), embedding, asked).reshape(x.shape)


def region(place: int, size: int, shift: int) -> int:
    """Which run of neighbors a token of the shifted plane belongs to, along one axis.

    The windows of the shifted plane start at ``shift``, ``shift + size``, ...; what is left of it at both
    ends shares the last window and must not mix.
    """
    return (place - shift) // size if place >= shift else -1


def naive_window_attention(block: Any, x: Tensor) -> Tensor:
    """Each token attends to the tokens of its own region: two loops, no roll, no mask, no window."""
    b, t, f, d = x.shape
    (rows, columns), (down, right), heads = block.size, block.shift, block.heads
    width = d // heads
    query, key, value = block.qkv(block.norm(x)).chunk(3, dim=-1)
    mixed = torch.zeros_like(x)
    places = [(i, j) for i in range(t) for j in range(f)]
    for item in range(b):
        for i, j in places:
            mine = (region(i, rows, down), region(j, columns, right))
            others = [p for p in places if (region(p[0], rows, down), region(p[1], columns, right)) == mine]
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = []
                for k, m in others:
                    score = query[item, i, j, part] @ key[item, k, m, part] / math.sqrt(width)
                    row = (i - k + rows - 1) * (2 * columns - 1) + (j - m + columns - 1)
                    scores.append(score + block.bias[row, head])
                weights = torch.stack(scores).softmax(dim=0)
                for weight, (k, m) in zip(weights, others, strict=True):
                    mixed[item, i, j, part] += weight * value[item, k, m, part]
    return x + block.out(mixed)


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_windows_hold_neighbors_and_join_undoes_cut(shift: int) -> None:
    t, f, size = 8, 12, 4
    x = torch.arange(2 * t * f).reshape(2, t, f, 1).float()
    windows = cut(x, size, shift)
    assert windows.shape == (2 * 6, 16, 1)
    for index in range(6):
        row, column = divmod(index, 3)
        for place in range(16):
            i = (row * size + place // size + shift) % t
            j = (column * size + place % size + shift) % f
            assert windows[6 + index, place] == x[1, i, j]
    assert torch.equal(join_windows(windows, size, shift, 2, 3), x)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize(("t", "f", "heads"), [(4, 8, 2), (8, 4, 1), (8, 12, 2), (4, 4, 3)])
def test_window_attention_equals_the_naive_loops(shift: int, t: int, f: int, heads: int) -> None:
    block = randomized(WindowAttention(6, heads, size=4, shift=shift))
    x = noise(2, t, f, 6)
    torch.testing.assert_close(in_plane(block, x), naive_window_attention(block, x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 5])
def test_windows_of_odd_size_equal_the_naive_loops(size: int) -> None:
    block = randomized(WindowAttention(4, 2, size=size, shift=size // 2))
    x = noise(2, size, 2 * size, 4)
    torch.testing.assert_close(in_plane(block, x), naive_window_attention(block, x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "shift"), [((5, 4), (2, 2)), ((2, 3), (1, 0)), ((3, 2), (0, 1)), ((4, 1), 0)]
)
def test_windows_of_unequal_sides_equal_the_naive_loops(size: tuple[int, int], shift: Any) -> None:
    block = randomized(WindowAttention(4, 2, size, shift))
    for rows, columns in ((1, 1), (2, 3)):
        x = noise(2, rows * size[0], columns * size[1], 4)
        torch.testing.assert_close(in_plane(block, x), naive_window_attention(block, x), atol=2e-5, rtol=1e-5)


def test_without_its_mask_the_shift_mixes_what_is_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "MASKED", 0.0)
    block = randomized(WindowAttention(6, 2, size=4, shift=2))
    x = noise(2, 8, 12, 6)
    assert (in_plane(block, x) - naive_window_attention(block, x)).abs().max() > 0.01


def test_the_shift_lets_windows_meet() -> None:
    """A change in one token reaches its window, and with the shift the neighboring half-windows."""
    x = noise(1, 8, 8, 6)
    changed = x.clone()
    changed[0, 3, 3, 0] += 1.0  # of one channel: the norm would take it from all
    for shift, (low, high) in {0: (0, 4), 2: (2, 6)}.items():
        block = randomized(WindowAttention(6, 2, size=4, shift=shift))
        moved = (in_plane(block, changed) - in_plane(block, x)).abs().sum(dim=-1)[0] > 1e-7
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[low:high, low:high] = True
        assert torch.equal(moved, expected)


def test_relative_index_by_brute_force() -> None:
    for size in (1, 2, 4, 5):
        index = relative_index(size)
        assert index.shape == (size * size, size * size)
        seen: dict[tuple[int, int], int] = {}
        for a in range(size * size):
            for b in range(size * size):
                offset = (a // size - b // size, a % size - b % size)
                assert seen.setdefault(offset, int(index[a, b])) == int(index[a, b])
        assert len(set(seen.values())) == len(seen) == (2 * size - 1) ** 2
        assert sorted(seen.values()) == list(range((2 * size - 1) ** 2))


def test_masks_by_brute_force() -> None:
    size, shift = 4, 1
    masks = shift_masks(size, shift)
    for which, (last_row, last_column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for a in range(size * size):
            for b in range(size * size):
                (i, j), (k, m) = divmod(a, size), divmod(b, size)
                apart = last_row and (i >= size - shift) != (k >= size - shift)
                apart = apart or (last_column and (j >= size - shift) != (m >= size - shift))
                assert (masks[which, a, b] != 0) == bool(apart)


def test_a_masked_score_vanishes_in_every_precision() -> None:
    scores = torch.tensor([0.0, window_module.MASKED])
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        weights = scores.to(kind).softmax(dim=0)
        assert torch.isfinite(weights).all()
        assert float(weights[1]) < 1e-40


def naive_time_attention(block: Any, x: Tensor) -> Tensor:
    """Positions as rotations of complex numbers, in float64: RoFormer, equation 13 and 15."""
    block, x = block.double(), x.double()
    t, width = x.shape[1], x.shape[3] // block.heads
    tokens = block.norm(x)
    query = block.query(tokens)
    key, value = block.key_value(tokens).chunk(2, dim=-1)
    rates = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    mixed = torch.zeros_like(x)
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)
        q = torch.complex(*query[..., part].chunk(2, dim=-1))
        k = torch.complex(*key[..., part].chunk(2, dim=-1))
        for i in range(t):
            angles = rates * (i - torch.arange(t, dtype=torch.float64))[:, None]  # [T, width/2]
            turn = torch.polar(torch.ones_like(angles), angles)
            scores = (q[:, i, None] * k.conj() * turn[None, :, None]).real.sum(-1) / math.sqrt(width)
            weights = scores.softmax(dim=1)  # [B, T, F]
            mixed[:, i, :, part] = (weights[..., None] * value[..., part]).sum(dim=1)
    return (x + block.out(mixed)).float()


@pytest.mark.parametrize("heads", [1, 2])
def test_time_attention_equals_the_naive_rotations(heads: int) -> None:
    block = randomized(TimeAttention(8, heads))
    x = noise(2, 7, 3, 8)
    ours = tsa(block, x)
    torch.testing.assert_close(ours, naive_time_attention(block, x), atol=1e-4, rtol=1e-4)


def test_time_attention_depends_on_differences_of_frames_alone() -> None:
    """Scores of the same two tokens are the same wherever they stand, and differ with their distance."""
    cos, sin = rotary_tables(64, 8, torch.device("cpu"))
    q, k = noise(2, 8).unbind()

    def rotated(x: Tensor, frame: int) -> Tensor:
        first, second = x.chunk(2)
        return x * cos[frame] + torch.cat((-second, first)) * sin[frame]

    def score(i: int, j: int) -> float:
        return float(rotated(q, i) @ rotated(k, j))

    for start in range(1, 50):
        assert score(start, start + 7) == pytest.approx(score(0, 7), abs=2e-5)
    assert abs(score(0, 7) - score(7, 0)) > 1e-3
    assert abs(score(0, 7) - score(0, 8)) > 1e-3


def test_time_attention_knows_the_order_of_frames() -> None:
    block = randomized(TimeAttention(8, 2))
    x = noise(1, 6, 2, 8)
    order = torch.tensor([0, 2, 1, 3, 5, 4])
    assert (tsa(block, x)[:, order] - tsa(block, x[:, order])).abs().max() > 1e-3


def test_time_attention_keeps_bins_apart_and_frequency_attention_frames() -> None:
    x = noise(2, 5, 6, 8)
    changed = x.clone()
    changed[1, 2, 3, 0] += 1.0
    time = randomized(TimeAttention(8, 2))
    moved = (tsa(time, changed) - tsa(time, x)).abs().sum(-1) > 1e-7
    expected = torch.zeros(2, 5, 6, dtype=torch.bool)
    expected[1, :, 3] = True
    assert torch.equal(moved, expected)
    frequency, embedding = randomized(FrequencyAttention(8, 2)), noise(6, 8, seed=5)
    moved = (fsa(frequency, changed, embedding) - fsa(frequency, x, embedding)).abs().sum(-1) > 1e-7
    expected = torch.zeros(2, 5, 6, dtype=torch.bool)
    expected[1, 2, :] = True
    assert torch.equal(moved, expected)


def test_frequency_attention_tells_bins_apart_by_the_embedding_alone() -> None:
    block = randomized(FrequencyAttention(8, 2))
    x = noise(1, 3, 6, 8)
    order = torch.tensor([3, 1, 0, 2, 5, 4])
    nothing, embedding = torch.zeros(6, 8), noise(6, 8, seed=5)
    torch.testing.assert_close(fsa(block, x, nothing)[:, :, order], fsa(block, x[:, :, order], nothing))
    assert (fsa(block, x, embedding)[:, :, order] - fsa(block, x[:, :, order], embedding)).abs().max() > 1e-3


@pytest.mark.parametrize("heads", [1, 2])
def test_frequency_attention_equals_the_formula(heads: int) -> None:
    block = randomized(FrequencyAttention(8, heads))
    x, embedding = noise(2, 3, 5, 8), noise(5, 8, seed=5)
    tokens = block.norm(x) + embedding
    key, value = block.key_value(tokens).chunk(2, dim=-1)
    parts = zip(*(z.chunk(heads, dim=-1) for z in (block.query(tokens), key, value)), strict=True)
    mixed = [((q @ k.mT) / math.sqrt(8 / heads)).softmax(-1) @ v for q, k, v in parts]
    found = fsa(block, x, embedding)
    torch.testing.assert_close(found, x + block.out(torch.cat(mixed, -1)), atol=1e-5, rtol=1e-5)


def test_attention_asks_the_source_where_one_is_given() -> None:
    x, source, other = noise(1, 4, 4, 8), noise(1, 4, 4, 8, seed=2), noise(1, 4, 4, 8, seed=3)
    time, frequency = randomized(TimeAttention(8, 2)), randomized(FrequencyAttention(8, 2))
    embedding = noise(4, 8, seed=5)
    assert (tsa(time, x, source) - tsa(time, x, other)).abs().max() > 1e-3
    assert (fsa(frequency, x, embedding, source) - fsa(frequency, x, embedding, other)).abs().max() > 1e-3
    torch.testing.assert_close(tsa(time, x, x), tsa(time, x))
    torch.testing.assert_close(fsa(frequency, x, embedding, x), fsa(frequency, x, embedding))


def test_cross_attention_mixes_both_streams_and_learns() -> None:
    block = CrossAttention(8, 2)
    one, two, embedding = noise(1, 4, 4, 8), noise(1, 4, 4, 8, seed=2), noise(4, 8, seed=5)
    asked = tsa(block.time, one, two)
    expected = 0.5 * (asked + fsa(block.frequency, two, embedding, one))
    out = block(one, two, embedding)
    torch.testing.assert_close(out, expected)
    assert (out - block(two, one, embedding)).abs().max() > 1e-4
    out.square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_mlp_and_the_convolution_add_to_their_input() -> None:
    mlp, conv = Mlp(8, 2.0), ResidualConv(8)
    for last in (mlp.contract, conv.second):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    x = noise(2, 8, 5, 8)
    assert torch.equal(mlp(x), x)
    assert torch.equal(conv(x), x)


@pytest.mark.parametrize("layout", ["adjacent", "contiguous"])
def test_fold_puts_bins_where_it_says(layout: str) -> None:
    planes, bins, factor = 3, 12, 4
    x = (torch.arange(planes)[:, None] * 100 + torch.arange(bins)).float()  # plane p, bin f: 100 p + f
    folded = fold(x[None, :, None].expand(2, planes, 5, bins), factor, layout)
    assert folded.shape == (2, planes * factor, 5, bins // factor)
    for p in range(planes):
        for part in range(factor):
            for place in range(bins // factor):
                bin_ = place * factor + part if layout == "adjacent" else part * (bins // factor) + place
                assert (folded[:, p * factor + part, :, place] == 100 * p + bin_).all()


@pytest.mark.parametrize("layout", ["adjacent", "contiguous"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_unfold_undoes_fold(layout: str, factor: int) -> None:
    x = noise(2, 4, 3, 8)
    assert torch.equal(unfold(fold(x, factor, layout), factor, layout), x)
    y = noise(2, 4 * factor, 3, 2)
    assert torch.equal(fold(unfold(y, factor, layout), factor, layout), y)
