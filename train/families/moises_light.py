"""Moises-Light: a small U-Net on sub-bands, strided along time alone, with rotary attention at its bottom.

Y.-N. Hung et al., Moises-Light: Resource-efficient Band-split U-Net for Music Source Separation, WASPAA 2025,
arXiv:2510.06785, as the package ``moises-light`` has it, the paper's authors having published no code::

    mixture [B, 2C, F, T]
      | - mean, / deviation, of the chunk itself
      | bins side by side in sub-bands: [B, bands*2C, F/bands, T]
      | 3x3, a group of channels for each sub-band
      | stage --+-- skip ------------------------------- x
      |         | 1x2, stride 2 along T                  | 1x2 transposed
      |         | stage --+-- skip ------- x -- stage ---'
      |         |   ...   |  stage         |
      |                   |  turns x (attention along T, then along F/bands), norm
      | 3x3, a group for each sub-band; sub-bands to bins; 1x1, of a network of several stems
    masks, one for each plane, x mixture
    stems [B, S*2C, F, T]

A stage is 3x3 convolutions in groups, between them two linear layers along the bins of a sub-band that are
added (a TDF), and around all one more 3x3 that is added. The lowest ``heavy`` levels of the way up have a
stage, the others have none. Behind every convolution and linear layer are a norm and an activation.

Weights have the names and shapes of the package's state dictionaries. With ``norm`` ``batch``, items of a
batch meet in training; in eval mode they meet nowhere. T is the graph's own: the rotations are constants in
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.gated import FeedForward, GatedAttention, RmsNorm
from tfswa.train.blocks.norm import GroupNorm, standardized
from tfswa.train.families import Family

TINY = 1e-5  # that a deviation is raised by before it divides


@dataclass(frozen=True)
class MoisesLightHyper:
    """Hyper-parameters of Moises-Light.

    Attributes:
        width: channels of the first level, and what each level below has more; a multiple of ``bands``.
        depth: how often frames are halved.
        heavy: levels of the way up that have a stage, counted from the lowest.
        bands: sub-bands, of equally many bins.
        splits: convolutions before, and as many behind, the TDF of a stage on the way down.
        splits_up: the same on the way up.
        narrowing: bins of a sub-band over the places between the two linear layers of a TDF.
        kernel: bins and frames that the first and the last convolution see, odd.
        turns: how often attention looks along frames and then along bins.
        heads: of attention.
        dim_head: channels of a head, even.
        mlp_ratio: hidden width of an MLP over its channels.
        mask: whether the network gives masks; otherwise it gives the stems themselves.
        norm: of channels: over the ``batch``; each by itself, ``instance``; or all together, ``layer``.
        activation: behind a norm.
    """

    width: int = 56
    depth: int = 3
    heavy: int = 1
    bands: int = 4
    splits: int = 3
    splits_up: int = 1
    narrowing: int = 8
    kernel: int = 3
    turns: int = 5
    heads: int = 4
    dim_head: int = 32
    mlp_ratio: float = 2.0
    mask: bool = True
    norm: Literal["batch", "instance", "layer"] = "batch"
    activation: Literal["relu", "gelu", "leaky_relu", "softplus", "silu", "mish"] = "relu"


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: GroupNorm(channels, channels),
    "layer": lambda channels: GroupNorm(1, channels),
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}


class Convolved(nn.Module):
    """A convolution, a norm, an activation: ``[B, D, F, T]`` to what the convolution gives."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, hyper: MoisesLightHyper):
        super().__init__()
        self.conv = conv
        self.bn = NORMS[hyper.norm](conv.out_channels)
        self.act = ACTIVATIONS[hyper.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class BiasApart(nn.Linear):
    """A linear layer along bins. What comes behind it is a norm of channels, another axis.

    The bias is added apart, because ``torch.jit.freeze`` (2.13) makes one of a linear layer and a norm behind
    it, and takes their axes for the same where channels are as many as places.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D, T, F']``."""
        return functional.linear(x, self.weight) + self.bias


class BinLayers(nn.Module):
    """Two linear layers along bins, to a few and back, each with norm and activation.

    ``[B, D, F, T] -> [B, D, F, T]``.
    """

    def __init__(self, channels: int, bins: int, hyper: MoisesLightHyper):
        super().__init__()
        narrow = bins // hyper.narrowing
        self.fc1, self.bn1 = BiasApart(bins, narrow), NORMS[hyper.norm](channels)
        self.fc2, self.bn2 = BiasApart(narrow, bins), NORMS[hyper.norm](channels)
        self.act = ACTIVATIONS[hyper.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.act(self.bn1(self.fc1(x.transpose(2, 3))))
        x = self.act(self.bn2(self.fc2(x)))
        return x.transpose(2, 3)


class GroupedStage(nn.Module):
    """Convolutions in groups, a TDF between them, and a way around: ``[B, D, F, T] -> [B, D, F, T]``."""

    def __init__(self, channels: int, bins: int, splits: int, hyper: MoisesLightHyper):
        super().__init__()
        self.res = _grouped(channels, channels, 3, hyper)
        self.split1 = nn.Sequential(*(_grouped(channels, channels, 3, hyper) for _ in range(splits)))
        self.tdf = BinLayers(channels, bins, hyper)
        self.split2 = nn.Sequential(*(_grouped(channels, channels, 3, hyper) for _ in range(splits)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found = self.split1(x)
        out: Tensor = self.split2(found + self.tdf(found)) + self.res(x)
        return out


class RotaryTransformer(nn.Module):
    """Attention and MLP over sequences: ``[N, L, D] -> [N, L, D]``."""

    def __init__(self, dim: int, hyper: MoisesLightHyper):
        super().__init__()
        attention = GatedAttention(dim, hyper.heads, hyper.dim_head)
        self.layers = nn.ModuleList([nn.ModuleList([attention, FeedForward(dim, hyper.mlp_ratio)])])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        attention, mlp = cast(nn.ModuleList, self.layers[0])
        out: Tensor = mlp(attention(x, None)[0])
        return out


class DualPathTurn(nn.Module):
    """Attention along frames, then along bins: ``[B, F, T, D] -> [B, F, T, D]``."""

    def __init__(self, dim: int, hyper: MoisesLightHyper):
        super().__init__()
        self.time_transformer = RotaryTransformer(dim, hyper)
        self.freq_transformer = RotaryTransformer(dim, hyper)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        b, f, t, dim = x.shape
        x = self.time_transformer(x.reshape(b * f, t, dim)).reshape(b, f, t, dim)
        x = self.freq_transformer(x.transpose(1, 2).reshape(b * t, f, dim))
        return x.reshape(b, t, f, dim).transpose(1, 2)


class Bottom(nn.Module):
    """The lowest level, a stage and the turns behind it: ``[B, D, F, T] -> [B, D, F, T]``.

    Attributes:
        checkpointing: as of the network.
    """

    def __init__(self, channels: int, bins: int, hyper: MoisesLightHyper):
        super().__init__()
        self.checkpointing = False
        self.split_merge = GroupedStage(channels, bins, hyper.splits, hyper)
        self.rope_blocks = nn.ModuleList(DualPathTurn(channels, hyper) for _ in range(hyper.turns))
        self.final_norm = RmsNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        again = self.checkpointing and self.training
        x = self.split_merge(x).permute(0, 2, 3, 1)  # [B, F, T, D]
        for turn in self.rope_blocks:
            x = checkpoint(turn, x, use_reentrant=False) if again else turn(x)
        out: Tensor = self.final_norm(x).permute(0, 3, 1, 2)
        return out


class MoisesLight(nn.Module):
    """The network of this file's drawing.

    Args:
        spec: contract; fixes C, T, F and the stems.
        hyper: hyper-parameters.

    Raises:
        ConfigError: numbers out of range, or T, F or ``width`` that strides and sub-bands do not divide.
    """

    def __init__(self, spec: ModelSpec, hyper: MoisesLightHyper):
        super().__init__()
        _check(spec, hyper)
        self.hyper, self.stems = hyper, len(spec.outputs)
        planes, bins = 2 * spec.channels, spec.stft.bins // hyper.bands
        widths = [hyper.width * (level + 1) for level in range(hyper.depth + 1)]
        self.first_conv = _grouped(planes * hyper.bands, hyper.width, hyper.kernel, hyper)
        self.encoder_blocks, self.ds = nn.ModuleList(), nn.ModuleList()
        for level in range(hyper.depth):
            self.encoder_blocks.append(GroupedStage(widths[level], bins, hyper.splits, hyper))
            self.ds.append(Convolved(nn.Conv2d(widths[level], widths[level + 1], (1, 2), (1, 2)), hyper))
        self.bottleneck = Bottom(widths[-1], bins, hyper)
        self.dec_heavy_us, self.dec_heavy_blocks = nn.ModuleList(), nn.ModuleList()
        self.dec_light_us = nn.ModuleList()
        for level in reversed(range(hyper.depth)):
            up = Convolved(nn.ConvTranspose2d(widths[level + 1], widths[level], (1, 2), (1, 2)), hyper)
            if len(self.dec_heavy_us) < hyper.heavy:
                self.dec_heavy_us.append(up)
                self.dec_heavy_blocks.append(GroupedStage(widths[level], bins, hyper.splits_up, hyper))
            else:
                self.dec_light_us.append(up)
        self.final_conv = nn.Conv2d(
            hyper.width,
            planes * hyper.bands,
            hyper.kernel,
            padding=hyper.kernel // 2,
            groups=hyper.bands,
        )
        self.source_head = nn.Conv2d(planes, self.stems * planes, 1) if self.stems > 1 else nn.Identity()

    @property
    def checkpointing(self) -> bool:
        """Whether a training step keeps the inputs of the turns alone, and computes them again."""
        return self.bottleneck.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.bottleneck.checkpointing = value

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        b, planes, t, f = mixture.shape
        bands = self.hyper.bands
        normed, mean, deviation = standardized(mixture, TINY)
        x = normed.transpose(2, 3).reshape(b, planes, bands, f // bands, t)
        x = self.first_conv(x.transpose(1, 2).reshape(b, bands * planes, f // bands, t))
        skips = []
        for stage, down in zip(self.encoder_blocks, self.ds, strict=True):
            skips.append(stage(x))
            x = down(skips[-1])
        x = self.bottleneck(x)
        for up, stage in zip(self.dec_heavy_us, self.dec_heavy_blocks, strict=True):
            x = stage(up(x) * skips.pop())
        for up in self.dec_light_us:
            x = up(x) * skips.pop()
        x = self.final_conv(x).reshape(b, bands, planes, f // bands, t)
        x = self.source_head(x.transpose(1, 2).reshape(b, planes, f, t))
        found = x.reshape(b, self.stems, planes, f, t).transpose(3, 4)
        mask = self.hyper.mask
        out: Tensor = found * mixture[:, None] if mask else found * deviation[:, None] + mean[:, None]
        return out


def _grouped(inputs: int, outputs: int, kernel: int, hyper: MoisesLightHyper) -> Convolved:
    """A convolution with a group of channels for each sub-band, norm and activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=hyper.bands)
    return Convolved(conv, hyper)


def _check(spec: ModelSpec, hyper: MoisesLightHyper) -> None:
    counts = ("width", "depth", "bands", "splits", "splits_up", "narrowing", "turns", "heads", "dim_head")
    for name in counts:
        if getattr(hyper, name) < 1:
            raise ConfigError(f"{name} {getattr(hyper, name)} must be 1 or above")
    if not 0 <= hyper.heavy <= hyper.depth:
        raise ConfigError(f"heavy {hyper.heavy} must be 0 to {hyper.depth}, the depth")
    if hyper.kernel < 1 or hyper.kernel % 2 == 0:
        raise ConfigError(f"kernel {hyper.kernel} must be odd: bins and frames on both sides are as many")
    if hyper.dim_head % 2:
        raise ConfigError(f"dim_head {hyper.dim_head} must be even: places turn pairs of channels")
    if not hyper.width * (hyper.depth + 1) * hyper.mlp_ratio >= 1:
        raise ConfigError(f"mlp_ratio {hyper.mlp_ratio} leaves an MLP nothing: raise it")
    for what, value, step, why in (
        ("frames of a chunk", spec.chunk.frames, 2**hyper.depth, f"depth {hyper.depth} halves them"),
        ("bins", spec.stft.bins, hyper.bands, "sub-bands have equally many"),
        ("channels of width", hyper.width, hyper.bands, "sub-bands have equally many"),
    ):
        if value % step:
            raise ConfigError(f"{value} {what} are not a multiple of {step}, {why}: change either")
    bins = spec.stft.bins // hyper.bands
    if bins < hyper.narrowing:
        raise ConfigError(f"narrowing {hyper.narrowing} leaves nothing of a sub-band's {bins} bins: lower it")


MOISES_LIGHT = Family(
    "moises_light",
    "Moises-Light: a U-Net on sub-bands with rotary attention at its bottom, 5M",
    MoisesLightHyper,
    MoisesLight,
    # 192 frames between chunks, a multiple of the strides: every chunk lies on one grid.
    chunk=ChunkSpec(frames=256, context=25, fade=13, multiple=8),
    stft=StftSpec(n_fft=6144, hop=1024, scale=6144**-0.5, padding="reflect", seen=(0, 2048)),
    published=5_451_216,
    published_stems=("vocals", "drums", "bass", "other"),
)
