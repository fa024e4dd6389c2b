"""Hybrid Transformer Demucs: one U-Net on spectra, one on samples, and a transformer that joins them.

S. Rouard, F. Massa and A. Défossez, Hybrid Transformers for Music Source Separation, arXiv:2211.08553, 2022::

    planes [B, 2*C, F, T]            samples [B, C, N]
      | - mean, / deviation            | - mean, / deviation       of the chunk itself
      | encoders, F / 4 each ---.      | encoders, N / 4 each ---.
      |  + a vector per bin     |      |                         |
      +--------------- transformer ----+                         |
      |                         |      |                         |
      | decoders, + skips <-----'      | decoders, + skips <-----'
      | x deviation, + mean            | x deviation, + mean
    planes of the stems              samples of the stems

The host adds both. The planes are the stems' spectra themselves, no masks. T and N are the graph's own:
places are constants in it. Weights have the names and shapes of the state dictionaries of the package
``demucs``, and the transform is that package's: scaled by 1 / sqrt(n_fft), frame t centered on sample
(t + 1/2) * hop, no Nyquist bin, and an inverse that is quieter in the first and last 1.5 hops of a chunk
(``endless``), which are discarded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.crossing import CrossTransformer, TransformerShape
from tfswa.train.blocks.hybrid import DecoderLayer, EncoderLayer, LayerShape
from tfswa.train.blocks.norm import standardized
from tfswa.train.families import Family

TINY = 1e-5  # that a deviation is raised by before it divides
STEMS = ("drums", "bass", "other", "vocals")  # of the published networks; two more of the largest
STEMS_6 = (*STEMS, "guitar", "piano")


@dataclass(frozen=True)
class HTDemucsHyper:
    """Hyper-parameters, called as in the package. The defaults are those of the published four stems.

    Attributes:
        channels: of the first level.
        growth: channels of a level over those of the one above.
        depth: levels.
        kernel_size: width of the convolutions along F and N, twice the stride.
        stride: by which a level shortens F and N; a multiple of 2.
        context: neighbors that a decoder sees before its GLU, on each side.
        context_enc: those that an encoder sees.
        rewrite: whether there are GLUs.
        norm_starts: first level with norms; ``depth`` or above: none.
        norm_groups: groups of these norms.
        dconv_mode: who has residual branches: 0 nobody, 1 encoders, 2 decoders, 3 both.
        dconv_depth: residual branches in a row.
        dconv_comp: channels of a level over those of its residual branches.
        dconv_init: factor that residual branches begin with.
        freq_emb: weight of the vectors that tell the bins of the first level; 0: none.
        emb_scale: factor of these vectors, so that they learn faster than other weights.
        emb_smooth: whether they begin with neighbors alike.
        bottom_channels: D, width of the transformer; 0: the channels of the last level.
        t_layers: turns of the transformer.
        t_heads: attention heads.
        t_hidden_scale: width of its perceptrons over D.
        t_dropout: share of numbers that it leaves out in training.
        t_norm_in: whether tokens are normalized before places are added.
        t_norm_out: whether all that a layer gives is normalized at once.
        t_layer_scale: whether what a layer adds has a factor for each channel.
        t_gelu: GELU in its perceptrons; ReLU otherwise.
        t_cross_first: whether the first turn is one in which spectrum and samples ask each other.
        t_max_period: longest wave of the places, over 2 pi.
        t_weight_pos_embed: factor of the places.
        track_level: deviation of the track, by which the package's command divides first. The network
            divides by the chunk's own, so all that is left is this factor of what keeps that from being 0.
        rescale: deviation towards which convolutions are scaled at the beginning; 0: they are not.
    """

    channels: int = 48
    growth: int = 2
    depth: int = 4
    kernel_size: int = 8
    stride: int = 4
    context: int = 1
    context_enc: int = 0
    rewrite: bool = True
    norm_starts: int = 4
    norm_groups: int = 4
    dconv_mode: int = 3
    dconv_depth: int = 2
    dconv_comp: float = 8.0
    dconv_init: float = 1e-3
    freq_emb: float = 0.2
    emb_scale: float = 10.0
    emb_smooth: bool = True
    bottom_channels: int = 512
    t_layers: int = 5
    t_heads: int = 8
    t_hidden_scale: float = 4.0
    t_dropout: float = 0.0
    t_norm_in: bool = True
    t_norm_out: bool = True
    t_layer_scale: bool = True
    t_gelu: bool = True
    t_cross_first: bool = False
    t_max_period: float = 10_000.0
    t_weight_pos_embed: float = 1.0
    track_level: float = 1.0
    rescale: float = 0.1

    def widths(self) -> list[int]:
        """Channels of the levels."""
        return [self.channels * self.growth**level for level in range(self.depth)]

    def layer(self, level: int, *, frequency: bool, decoder: bool) -> LayerShape:
        """What a layer looks like, apart from its channels."""
        return LayerShape(
            frequency=frequency,
            kernel=self.kernel_size,
            stride=self.stride,
            context=self.context if decoder else self.context_enc,
            rewrite=self.rewrite,
            groups=self.norm_groups if level >= self.norm_starts else 0,
            branches=self.dconv_depth if self.dconv_mode & (2 if decoder else 1) else 0,
            squeeze=self.dconv_comp,
            start=self.dconv_init,
        )

    def transformer(self) -> TransformerShape:
        """What the transformer looks like."""
        dim = self.bottom_channels or self.widths()[-1]
        return TransformerShape(
            dim=dim,
            heads=self.t_heads,
            hidden=int(dim * self.t_hidden_scale),
            layers=self.t_layers,
            dropout=self.t_dropout,
            norm_in=self.t_norm_in,
            norm_out=self.t_norm_out,
            scaled=self.t_layer_scale,
            gelu=self.t_gelu,
            cross_first=self.t_cross_first,
            period=self.t_max_period,
            place_weight=self.t_weight_pos_embed,
        )


class BinVectors(nn.Module):
    """A vector for each bin, added to all frames: ``[B, D, F, T] -> [B, D, F, T]``."""

    def __init__(self, bins: int, dim: int, hyper: HTDemucsHyper):
        super().__init__()
        self.embedding = nn.Embedding(bins, dim)
        self.factor = hyper.emb_scale * hyper.freq_emb
        with torch.no_grad():
            weight = self.embedding.weight
            if hyper.emb_smooth:  # sums of ever more numbers, brought back to the deviation of one
                weight.copy_(weight.cumsum(dim=0) / torch.arange(1, bins + 1).sqrt()[:, None])
            weight.div_(hyper.emb_scale)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.factor * self.embedding.weight.t()[:, :, None]


class HTDemucs(nn.Module):
    """See this file's drawing.

    Args:
        spec: contract; fixes C, T, F, N and the stems.
        hyper: hyper-parameters.

    Raises:
        ConfigError: numbers that do not suit each other.
    """

    def __init__(self, spec: ModelSpec, hyper: HTDemucsHyper):
        super().__init__()
        _check(spec, hyper)
        self.stems, self.tiny, widths = len(spec.outputs), TINY * hyper.track_level, hyper.widths()
        lengths = [spec.chunk_samples]  # of the samples before each level, and behind the last one
        for _ in range(hyper.depth):
            lengths.append(-(-lengths[-1] // hyper.stride))
        for frequency, kind in ((True, ""), (False, "t")):
            inputs = spec.channels * (2 if frequency else 1)
            above, below = [inputs, *widths[:-1]], [inputs * self.stems, *widths[:-1]]
            shapes = [
                [hyper.layer(k, frequency=frequency, decoder=decoder) for k in range(hyper.depth)]
                for decoder in (False, True)
            ]
            encoders = [
                EncoderLayer(few, many, shape, length)
                for few, many, shape, length in zip(above, widths, shapes[0], lengths[:-1], strict=True)
            ]
            decoders = [
                DecoderLayer(many, few, shape, lengths[level], last=level == 0)
                for level, (few, many, shape) in enumerate(zip(below, widths, shapes[1], strict=True))
            ]
            self.add_module(f"{kind}encoder", nn.ModuleList(encoders))
            self.add_module(f"{kind}decoder", nn.ModuleList(decoders[::-1]))
        bins = spec.stft.bins
        self.freq_emb = BinVectors(bins // hyper.stride, widths[0], hyper) if hyper.freq_emb else None
        self.channel_upsampler, self.channel_downsampler = _to_and_fro(widths[-1], hyper.bottom_channels)
        self.channel_upsampler_t, self.channel_downsampler_t = _to_and_fro(widths[-1], hyper.bottom_channels)
        smaller = hyper.stride**hyper.depth
        self.crosstransformer = CrossTransformer(
            hyper.transformer(), bins // smaller, spec.chunk.frames, lengths[-1]
        )
        if hyper.rescale:
            self._rescale(hyper.rescale)

    def forward(self, mixture: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 2*C, T, F]`` and ``[B, C, N]``, to ``[B, S, 2*C, T, F]`` and ``[B, S, C, N]``."""
        x, mean, deviation = standardized(mixture, self.tiny)
        line, mean_t, deviation_t = standardized(samples, self.tiny)
        x, skips = x.transpose(2, 3), []  # [B, 2*C, F, T]
        for level, encoder in enumerate(self._layers("encoder")):
            x = encoder(x)
            if level == 0 and self.freq_emb is not None:
                x = self.freq_emb(x)
            skips.append(x)
        skips_t = []
        for encoder in self._layers("tencoder"):
            line = encoder(line)
            skips_t.append(line)
        x, line = self._joined(x, line)
        for decoder in self._layers("decoder"):
            x = decoder(x, skips.pop())
        for decoder in self._layers("tdecoder"):
            line = decoder(line, skips_t.pop())
        b, planes, t, bins = mixture.shape
        stems = x.reshape(b, self.stems, planes, bins, t).transpose(3, 4)
        waves = line.reshape(b, self.stems, *samples.shape[1:])
        return stems * deviation[:, None] + mean[:, None], waves * deviation_t[:, None] + mean_t[:, None]

    def _layers(self, name: str) -> list[nn.Module]:
        return list(cast(nn.ModuleList, getattr(self, name)))

    def _joined(self, x: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
        """Through the transformer, in its width: ``[B, D, F, T]`` and ``[B, D, N]`` to the same."""
        b, _, bins, t = x.shape
        rows = self.channel_upsampler(x.flatten(2)).reshape(b, -1, bins, t)
        x, line = self.crosstransformer(rows, self.channel_upsampler_t(line))
        x = self.channel_downsampler(x.flatten(2)).reshape(b, -1, bins, t)
        return x, self.channel_downsampler_t(line)

    def _rescale(self, wanted: float) -> None:
        """Scale convolutions towards a deviation: A. Défossez et al., arXiv:1911.13254, section 4.2."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d):
                with torch.no_grad():
                    factor = (module.weight.std() / wanted).sqrt()
                    module.weight.div_(factor)
                    if module.bias is not None:
                        module.bias.div_(factor)


def _to_and_fro(width: int, bottom: int) -> tuple[nn.Module, nn.Module]:
    """Into the transformer's width and back; nothing where it has none of its own."""
    if not bottom:
        return nn.Identity(), nn.Identity()
    return nn.Conv1d(width, bottom, 1), nn.Conv1d(bottom, width, 1)


def _check(spec: ModelSpec, hyper: HTDemucsHyper) -> None:
    if not spec.samples:
        raise ConfigError(
            "htdemucs takes samples beside planes, the specification has none: make it with `tfx new`"
        )
    counts = ("channels", "growth", "depth", "norm_groups", "dconv_depth", "t_layers", "t_heads")
    for name in (*counts, "dconv_comp", "emb_scale", "t_hidden_scale", "t_max_period"):
        if not getattr(hyper, name) >= 1:
            raise ConfigError(f"{name} {getattr(hyper, name)} must be 1 or above")
    for name in ("context", "context_enc", "norm_starts", "bottom_channels", "rescale"):
        if getattr(hyper, name) < 0:
            raise ConfigError(f"{name} {getattr(hyper, name)} must be 0 or above")
    if not hyper.track_level > 0:
        raise ConfigError(f"track_level {hyper.track_level} must be above 0")
    if not 0 <= hyper.t_dropout < 1:
        raise ConfigError(f"t_dropout {hyper.t_dropout} must be 0 or above, and below 1")
    if hyper.dconv_mode not in range(4):
        raise ConfigError(f"dconv_mode {hyper.dconv_mode} must be 0, 1, 2 or 3")
    if hyper.stride < 2 or hyper.stride % 2 or hyper.kernel_size != 2 * hyper.stride:
        raise ConfigError(
            f"kernel_size {hyper.kernel_size} must be twice the stride {hyper.stride}, and that be even"
        )
    _check_sizes(spec, hyper)


def _check_sizes(spec: ModelSpec, hyper: HTDemucsHyper) -> None:
    """That levels divide the bins, and heads and norms the channels."""
    levels = f"{hyper.depth} levels of stride {hyper.stride}"
    if spec.stft.bins % hyper.stride**hyper.depth:
        raise ConfigError(
            f"{spec.stft.bins} bins do not divide by {hyper.stride**hyper.depth}, {levels}: change either"
        )
    if spec.stft.bins // hyper.stride ** (hyper.depth - 1) <= hyper.kernel_size:
        raise ConfigError(
            f"{spec.stft.bins} bins are too few for {levels}: the last one would see all of them; lower depth"
        )
    if int(hyper.channels / hyper.dconv_comp) < 1:
        raise ConfigError(f"dconv_comp {hyper.dconv_comp} leaves none of {hyper.channels} channels: lower it")
    dim = hyper.transformer().dim
    if dim % hyper.t_heads or dim % 4:
        raise ConfigError(
            f"{dim} channels of the transformer must divide by t_heads {hyper.t_heads} and by 4: "
            "change bottom_channels"
        )
    normed = [*hyper.widths()[hyper.norm_starts :], *hyper.widths()[max(0, hyper.norm_starts - 1) : -1]]
    if hyper.norm_starts == 0:
        normed += [spec.channels * len(spec.outputs)]
    for width in normed if hyper.norm_starts < hyper.depth else ():
        if width % hyper.norm_groups:
            raise ConfigError(
                f"norm_groups {hyper.norm_groups} does not divide {width} channels: change either"
            )


HTDEMUCS = Family(
    "htdemucs",
    "Hybrid Transformer Demucs: spectra and samples, joined by a transformer",
    HTDemucsHyper,
    HTDemucs,
    chunk=ChunkSpec(frames=336, context=33, fade=16, multiple=1, short=84),
    stft=StftSpec(scale=1 / 64, padding="reflect", offset=512, endless=True),
    samples=True,
    published=41_984_456,
    published_stems=STEMS,
)
