"""TFSWA-UNet for live use: no frame looks at a later one, and what came before is handed on as state.

The U-Net of ``tfswa_unet.py`` with strides along frequency alone, and every way through time made causal::

    convolution    sees its frame and the two before it
    TSA            each bin attends over its last ``memory`` frames, positions by rotary embedding
    FSA            within a frame, as there
    Swin           windows of ``window`` bins over the last ``window`` frames; every second block shifts them
                   by half a window along frequency

So a stem's frame is known with the mixture's frame, and the latency is that of the transform: one window.
What a layer needs of earlier frames it takes from its state, and puts there what the next chunk will need.
Before a signal there are zeros. A chunk's frames are the same numbers wherever the signal was cut::

    chunk k      [early|------------------ frames ------------------]
                       [------- step -------]
    chunk k+1                         [early|------------------ frames ------------------]
                                            ^ the state that chunk k gives is that before this frame
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.attention import (
    AxialAttention,
    FrequencyAttention,
    Mlp,
    project,
    rotary_tables,
    rotate,
    split_heads,
)
from tfswa.train.blocks.conv import BRANCH_INIT, fold, unfold
from tfswa.train.blocks.masking import magnitudes, masked
from tfswa.train.blocks.window import MASKED
from tfswa.train.families import Family
from tfswa.train.families.tfswa_unet import check_levels

KERNEL = 3  # of convolutions, in frames and in bins
TINY = 1e-8


@dataclass(frozen=True)
class CausalHyper:
    """Hyper-parameters of the causal TFSWA-UNet.

    Attributes:
        dims: channels per level; one level down, there are half as many bins.
        depths: blocks per level of the encoder; the last is the bottleneck.
        decoder_depths: blocks per level of the decoder, deepest first.
        heads: attention heads per level.
        mlp_ratio: hidden width of an MLP over its input's.
        memory: frames that TSA sees, its own among them.
        window: bins and frames of a window.
        fold: bins per position, adjacent ones.
    """

    dims: tuple[int, ...] = (24, 48, 88, 160)
    depths: tuple[int, ...] = (1, 1, 3, 1)
    decoder_depths: tuple[int, ...] = (1, 1, 1)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratio: float = 2.0
    memory: int = 64
    window: int = 8
    fold: int = 8


class Past:
    """What layers keep of earlier frames, by name.

    Args:
        given: the state before the first of the frames that are computed; what is lacking is zeros.
        step: frames after which the next chunk begins.

    Attributes:
        kept: the state before that frame, filled as the layers run.
    """

    def __init__(self, given: Mapping[str, Tensor], step: int):
        self._given, self._step = given, step
        self.kept: dict[str, Tensor] = {}

    def before(self, name: str, x: Tensor, frames: int) -> Tensor:
        """Frames ``[B, T, ...]`` with those that came before: ``[B, frames + T, ...]``."""
        past = self._given.get(name)
        if past is None:
            past = x.new_zeros(len(x), frames, *x.shape[2:])
        joined = torch.cat((past.to(x.dtype), x), dim=1)
        self.kept[name] = joined[:, self._step : self._step + frames]
        return joined


class CausalConv(nn.Module):
    """A 3x3 convolution that sees no later frame: ``[B, T, F, D] -> [B, T, F, D']``."""

    def __init__(self, name: str, inputs: int, outputs: int, bins: int):
        super().__init__()
        self.name, self.memory = name, (KERNEL - 1, bins, inputs)
        self.conv = nn.Conv2d(inputs, outputs, KERNEL, padding=(0, KERNEL // 2))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D']``."""
        joined = past.before(self.name, x, KERNEL - 1)
        out: Tensor = self.conv(joined.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class CausalTime(AxialAttention):
    """TSA over the last frames; residual inside. The state is keys and values, not yet turned."""

    def __init__(self, name: str, dim: int, heads: int, memory: int, bins: int):
        super().__init__(dim, heads)
        self.name, self.frames = name, memory
        self.memory = (memory - 1, bins, 2 * dim)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``."""
        b, t, f, d = x.shape
        tokens = self.norm(x)
        (query,) = project(self.query, tokens, 1, scale=self.scale)
        pairs = past.before(self.name, self.key_value(tokens), self.frames - 1)  # [B, M-1+T, F, 2*D]
        length = pairs.shape[1]
        key, value = pairs.transpose(1, 2).reshape(b * f, length, 2 * d).chunk(2, dim=-1)
        query = query.transpose(1, 2).reshape(b * f, t, d)
        cos, sin = rotary_tables(length, d // self.heads, x.device)
        mixed = functional.scaled_dot_product_attention(
            rotate(split_heads(query, self.heads), cos[length - t :], sin[length - t :]),
            rotate(split_heads(key, self.heads), cos, sin),
            split_heads(value, self.heads),
            attn_mask=_band(t, self.frames, x),
            scale=1.0,
        )
        mixed = mixed.transpose(1, 2).reshape(b, f, t, d).transpose(1, 2)
        out: Tensor = x + self.out(mixed)
        return out


class CausalWindow(nn.Module):
    """Swin over windows of bins and the last frames, with a relative position bias; residual inside."""

    relative: Tensor
    mask: Tensor

    def __init__(self, name: str, dim: int, heads: int, size: int, shift: int, bins: int):
        super().__init__()
        self.name, self.heads, self.size, self.shift = name, heads, size, shift
        self.scale, self.memory = (dim // heads) ** -0.5, (size - 1, bins, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(size * (2 * size - 1), heads))
        self.register_buffer("relative", _relative(size), persistent=False)
        self.register_buffer("mask", _shift_mask(size, shift, bins // size), persistent=False)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``."""
        b, t, f, d = x.shape
        size, columns = self.size, f // self.size
        tokens = self.norm(x)
        if self.shift:
            tokens = tokens.roll((-self.shift,), dims=(2,))
        (query,) = project(self.query, tokens, 1, scale=self.scale)
        pairs = past.before(self.name, self.key_value(tokens), size - 1)
        # Of every frame the last ones, the oldest first: [B, T, size, F, 2*D].
        recent = torch.stack([pairs[:, age : age + t] for age in range(size)], dim=2)
        recent = recent.reshape(b * t, size, columns, size, 2 * d).transpose(1, 2)
        key, value = recent.reshape(b * t * columns, size * size, 2 * d).chunk(2, dim=-1)
        scores = self.bias[self.relative].permute(2, 0, 1)  # [heads, size, size^2]
        if self.shift:  # windows, which differ in their mask, join the heads
            scores = (self.mask[:, None] + scores).flatten(0, 1)
        joined = (-1, scores.shape[0], size, d // self.heads)
        mixed = functional.scaled_dot_product_attention(
            split_heads(query.reshape(b * t * columns, size, d), self.heads).reshape(joined),
            split_heads(key, self.heads).reshape(*joined[:2], size * size, joined[3]),
            split_heads(value, self.heads).reshape(*joined[:2], size * size, joined[3]),
            attn_mask=scores[None].to(x.dtype),
            scale=1.0,
        )
        mixed = mixed.reshape(-1, self.heads, size, d // self.heads).transpose(1, 2).reshape(b, t, f, d)
        out: Tensor = self.out(mixed)
        return x + (out.roll((self.shift,), dims=(2,)) if self.shift else out)


class CausalBlock(nn.Module):
    """TSA -> FSA -> Swin, each with its MLP; at level 0 Swin alone. Tokens ``[B, T, F, D]``."""

    def __init__(
        self, name: str, dim: int, heads: int, bins: int, hyper: CausalHyper, *, axial: bool, shift: int
    ):
        super().__init__()
        self.axial = axial
        if axial:
            self.time = CausalTime(f"{name}.time", dim, heads, hyper.memory, bins)
            self.time_mlp = Mlp(dim, hyper.mlp_ratio)
            self.frequency, self.frequency_mlp = FrequencyAttention(dim, heads), Mlp(dim, hyper.mlp_ratio)
        self.window = CausalWindow(f"{name}.window", dim, heads, hyper.window, shift, bins)
        self.window_mlp = Mlp(dim, hyper.mlp_ratio)

    def forward(self, x: Tensor, embedding: Tensor, past: Past) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``; ``embedding`` is the stage's, ``[F, D]``."""
        if self.axial:
            x = self.time_mlp(self.time(x, past))
            x = self.frequency_mlp(self.frequency(x.flatten(0, 1), embedding)).reshape(x.shape)
        out: Tensor = self.window_mlp(self.window(x, past))
        return out


class CausalStage(nn.Module):
    """A residual of two convolutions, then blocks: ``[B, T, F, D] -> [B, T, F, D]``."""

    def __init__(self, name: str, level: int, bins: int, depth: int, hyper: CausalHyper, *, decoder: bool):
        super().__init__()
        self.checkpointing = False
        dim, heads = hyper.dims[level], hyper.heads[level]
        self.first = CausalConv(f"{name}.first", dim, dim, bins)
        self.second = CausalConv(f"{name}.second", dim, dim, bins)
        with torch.no_grad():
            self.second.conv.weight.mul_(BRANCH_INIT)
        # Shifts alternate; the decoder starts shifted, so that stages of depth 1 still meet both.
        self.blocks = nn.ModuleList(
            CausalBlock(
                f"{name}.{index}",
                dim,
                heads,
                bins,
                hyper,
                axial=level > 0,
                shift=hyper.window // 2 if (index + decoder) % 2 else 0,
            )
            for index in range(depth)
        )
        self.embedding = nn.Parameter(torch.empty(bins, dim)) if level > 0 else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``."""
        residual = self.first(functional.gelu(x), past)
        x = x + self.second(functional.gelu(residual), past)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, self.embedding, past, use_reentrant=False)
            else:
                x = block(x, self.embedding, past)
        return x


class CausalUnet(nn.Module):
    """The network of this file's text: soft masks on magnitudes, with the mixture's phase.

    Args:
        spec: contract; fixes C, stems, F, and where a chunk's state is taken.
        hyper: hyper-parameters.

    Raises:
        ConfigError: levels of unequal number, numbers out of range, or F that the windows do not divide.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, hyper: CausalHyper):
        super().__init__()
        levels = len(hyper.dims)
        _check(spec, hyper, levels)
        self.fold, self.stems, self.channels = hyper.fold, len(spec.outputs), spec.channels
        self.early, self.step, self.names = spec.chunk.early, spec.chunk.step, tuple(spec.state)
        bins, planes = spec.stft.bins // hyper.fold, spec.channels * hyper.fold
        self.register_buffer("mean", torch.zeros(spec.stft.bins))
        self.register_buffer("std", torch.ones(spec.stft.bins))
        self.stem = CausalConv("stem", planes, hyper.dims[0], bins)
        self.encoder = nn.ModuleList(
            CausalStage(f"encoder.{level}", level, bins >> level, hyper.depths[level], hyper, decoder=False)
            for level in range(levels)
        )
        self.decoder = nn.ModuleList(
            CausalStage(f"decoder.{level}", level, bins >> level, depth, hyper, decoder=True)
            for level, depth in zip(reversed(range(levels - 1)), hyper.decoder_depths, strict=True)
        )
        pairs = list(zip(hyper.dims[:-1], hyper.dims[1:], strict=True))
        self.down = nn.ModuleList(nn.Linear(2 * fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.Linear(coarse, 2 * fine) for fine, coarse in reversed(pairs))
        self.skip = nn.ModuleList(nn.Linear(fine, fine) for fine, _ in reversed(pairs))
        self.head = CausalConv("head", hyper.dims[0], self.stems * planes, bins)
        self.apply(_initialize)

    def state(self) -> dict[str, tuple[int, ...]]:
        """What goes from chunk to chunk: shapes by name, in the order in which the layers run."""
        layers = (m for m in self.modules() if isinstance(m, CausalConv | CausalTime | CausalWindow))
        return {layer.name: layer.memory for layer in layers}

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the input normalization: mean and standard deviation of the features per bin, ``[F]``."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(1e-4))

    def features(self, mixture: Tensor) -> Tensor:
        """Return what is normalized: log-compressed magnitudes, ``[B, C, T, F]``."""
        return torch.log(magnitudes(mixture, self.channels, TINY) + 1e-3)

    def forward(self, mixture: Tensor, *state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Planes and state to stems and state.

        Args:
            mixture: ``[B, 2*C, T, F]``; the first ``early`` frames are passed over, their stems are zeros.
            state: each ``[B, ...]``, by the names of the spec; none at all for zeros.

        Returns:
            ``[B, S, 2*C, T, F]``, and the state before frame ``early`` of the next chunk.
        """
        past = Past(dict(zip(self.names, state, strict=bool(state))), self.step)
        heard = mixture[:, :, self.early :]
        b, _, t, f = heard.shape
        out = self._planes((self.features(heard) - self.mean) / self.std, past)
        stems = masked(heard, out.sigmoid().reshape(b, self.stems, self.channels, 1, t, f))
        stems = functional.pad(stems, (0, 0, self.early, 0))
        if not self.names:
            return stems
        return (stems, *(past.kept[name] for name in self.names))

    def reconstruct(self, mixture: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Guess hidden features; see ``SeparationNetwork``."""
        truth = (self.features(mixture) - self.mean) / self.std
        out = self._planes(truth.masked_fill(hidden, 0.0), Past({}, self.step))
        b, _, t, f = out.shape
        return out.reshape(b, self.stems, -1, t, f), truth[:, None]

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass instead of being kept."""
        return any(stage.checkpointing for stage in (*self.encoder, *self.decoder))

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for stage in (*self.encoder, *self.decoder):
            stage.checkpointing = on

    def _planes(self, x: Tensor, past: Past) -> Tensor:
        """Normalized features ``[B, C, T, F]`` to the network's output ``[B, S*C, T, F]``."""
        x = self.stem(fold(x, self.fold, "adjacent").permute(0, 2, 3, 1), past)
        skips = []
        for stage, down in zip(self.encoder, self.down, strict=False):
            x = stage(x, past)
            skips.append(x)
            x = down(x.reshape(*x.shape[:2], x.shape[2] // 2, 2 * x.shape[3]))
        x = self.encoder[-1](x, past)
        for stage, up, skip in zip(self.decoder, self.up, self.skip, strict=True):
            fine = skips.pop()
            x = stage(up(x).reshape(fine.shape) + skip(fine), past)
        return unfold(self.head(x, past).permute(0, 3, 1, 2), self.fold, "adjacent")


def _band(frames: int, memory: int, like: Tensor) -> Tensor:
    """Which of ``memory - 1 + frames`` frames each of the last ones sees: 0 for its last ``memory``."""
    age = torch.arange(frames, device=like.device)[:, None] + memory - 1
    age = age - torch.arange(frames + memory - 1, device=like.device)
    return ((age < 0) | (age >= memory)).to(like.dtype)[None, None] * MASKED


def _relative(size: int) -> Tensor:
    """Index of the bias of a bin and each (frame, bin) of its window, oldest first: ``[size, size^2]``."""
    ages = torch.arange(size - 1, -1, -1)[:, None]
    bins = torch.arange(size)
    distance = bins[:, None, None] - bins + size - 1  # [size, 1, size]
    return (ages * (2 * size - 1) + distance).flatten(1)


def _shift_mask(size: int, shift: int, columns: int) -> Tensor:
    """What the cyclic shift brought together in the last window: ``[columns, size, size^2]``, 0 or MASKED."""
    beyond = torch.arange(size) >= size - shift
    apart = (beyond[:, None] != beyond).repeat(1, size).float() * MASKED
    mask = torch.zeros(columns, size, size * size)
    mask[-1] = apart
    return mask


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, CausalWindow):
        nn.init.trunc_normal_(module.bias, std=0.02)
    elif isinstance(module, CausalStage) and module.embedding is not None:
        nn.init.trunc_normal_(module.embedding, std=0.02)


def _check(spec: ModelSpec, hyper: CausalHyper, levels: int) -> None:
    check_levels(hyper, "mlp_ratio", "memory", "window", "fold")
    if min(hyper.memory, hyper.window) < 2:
        raise ConfigError(f"memory {hyper.memory} and window {hyper.window} must be 2 frames or more")
    step = hyper.fold * (hyper.window << (levels - 1))
    if spec.stft.bins % step:
        raise ConfigError(
            f"{spec.stft.bins} bins are not a multiple of {step}, "
            f"fold {hyper.fold} x window {hyper.window} on {levels} levels: change either"
        )


def _state(spec: ModelSpec, hyper: CausalHyper) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return CausalUnet(spec, hyper).state()


TFSWA_CAUSAL = Family(
    "tfswa_causal",
    "the same without look-ahead, for live use, 2.4M",
    CausalHyper,
    CausalUnet,
    stft=StftSpec(n_fft=2048, hop=512),
    # Two frames at each end see beyond the chunk: the first are passed over, and what they and the last would
    # have to do with is left out. A chunk of 8 frames gives one at a time, 46 ms after its last sample came.
    chunk=ChunkSpec(frames=64, context=3, fade=0, multiple=1, context_after=3, early=2),
    state=_state,
)
