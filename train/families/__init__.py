"""Network families: from a name to a spec, and from a spec to a network.

A family is found through the entry-point group ``tfswa.families``, so a third party can add one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tfswa.runtime.errors import BundleError, ConfigError, TfxError
from tfswa.runtime.files.signals import load_point
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.plugins import entry_points
from tfswa.train.families.contract import contract_error, meta_forward
from tfswa.train.strict import config_from_dict, suggestion

GROUP = "tfswa.families"


class SeparationNetwork(Protocol):
    """What a family's network can do, besides being an ``nn.Module``; only ``forward`` is a must.

    What the others are for is in ``contract.py``, which checks it by name.

    Attributes:
        checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    checkpointing: bool

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``.

        Of a specification with samples or state, more tensors, and a tuple; see ``contract.call``.
        """

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the input normalization: mean and standard deviation of the features per bin, ``[F]``."""

    def features(self, mixture: Tensor) -> Tensor:
        """Return what is normalized, ``[B, P, T, F]``."""

    def reconstruct(self, mixture: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Guess normalized features of which the network does not see those that are hidden.

        Args:
            mixture: ``[B, 2*C, T, F]``.
            hidden: ``[B, 1, T, F]``, true where the network sees 0, the mean.

        Returns:
            A guess per stem ``[B, S, P, T, F]``, and the truth ``[B, 1, P, T, F]``.
        """


@dataclass(frozen=True)
class Family:
    """A network family.

    Attributes:
        name: as it is typed.
        summary: one line for ``tfx models``.
        hyper: frozen dataclass of hyper-parameters with defaults.
        network: class built from (spec, hyper).
        chunk: the chunking it is made for.
        stft: the transform it is made for.
        state: what a causal network hands from chunk to chunk, from (spec, hyper): shapes by name, without
            the batch; ``forward`` takes and gives these tensors behind the planes. None: nothing.
        samples: whether the network also takes and gives samples, see ``ModelSpec``.
        renamed: former names of hyper-parameters, which older bundles hold, and those of today.
        published: parameters that the family's source states, to be compared with ours; None: none.
        published_stems: the stems of the network that they are of.
        elsewhere: the name that a weight has in the state dictionaries of the source's own package, of its
            name here and the spec; `tfx import FILE` reads those as well. None: there are none.
    """

    name: str
    summary: str
    hyper: type[Any]
    network: type[Any]
    chunk: ChunkSpec = ChunkSpec()
    stft: StftSpec = StftSpec()
    state: Callable[[ModelSpec, Any], Mapping[str, Sequence[int]]] | None = None
    samples: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    published: int | None = None
    published_stems: tuple[str, ...] = ("vocals", "accompaniment")
    elsewhere: Callable[[str, ModelSpec], str] | None = None

    def new_spec(self) -> ModelSpec:
        """The spec of an untrained model, all as the family has it."""
        return new_spec(self.name)


def family_names() -> list[str]:
    """Names of all installed families, sorted."""
    return sorted(point.name for point in entry_points(group=GROUP))


def get_family(name: str) -> Family:
    """Find a family by name.

    Raises:
        ConfigError: no such family.
    """
    for point in entry_points(group=GROUP):
        if point.name == name:
            return cast(Family, load_point(point))
    raise ConfigError(f"unknown family {name!r}{suggestion(name, family_names())}")


def new_spec(
    family: str,
    *,
    stems: Sequence[str] = ("vocals", "accompaniment"),
    channels: int = 2,
    hyper: Mapping[str, Any] | None = None,
    stft: StftSpec | None = None,
    chunk: ChunkSpec | None = None,
    unseen_stem: str | None = "",
    residual_stem: str | None = None,
    network_stems: Sequence[str] | None = None,
    weights_license: str = "unknown",
) -> ModelSpec:
    """Make the spec of an untrained model, hyper-parameters completed and costs counted.

    Raises:
        ConfigError: unknown family or hyper-parameter, or values that contradict each other.
    """
    entry = get_family(family)
    typed = hyper_of(entry, hyper or {})
    completed = dataclasses.asdict(typed)
    wanted = chunk or entry.chunk
    try:
        spec = ModelSpec(
            family=family,
            stems=tuple(stems),
            hyper=completed,
            channels=channels,
            stft=stft or entry.stft,
            chunk=dataclasses.replace(wanted, early=0),
            unseen_stem=unseen_stem,
            residual_stem=residual_stem,
            network_stems=None if network_stems is None else tuple(network_stems),
            samples=entry.samples,
            weights_license=weights_license,
        )
        spec = dataclasses.replace(spec, chunk=wanted, state=_state_of(entry, spec, typed))
    except BundleError as error:
        raise ConfigError(str(error)) from error
    parameters, gflop = count_costs(spec)
    return dataclasses.replace(spec, parameters=parameters, gflop_per_second=gflop)


def build_network(spec: ModelSpec) -> nn.Module:
    """Build the network of a spec, weights freshly initialized, in train mode.

    Raises:
        ConfigError: unknown family or hyper-parameter, impossible shapes, code of the family that fails.
    """
    if spec.family is None:
        raise ConfigError("a published graph is of no family, no network can be built: name one of a family")
    family = get_family(spec.family)
    hyper = hyper_of(family, spec.hyper)
    has, wanted = spec.state, _state_of(family, spec, hyper)
    if has != wanted:
        raise ConfigError(
            f"family {family.name!r}: state {_differing(has, wanted)}: make the specification with `tfx new`"
        )
    try:
        network = family.network(spec, hyper)
    except TfxError:
        raise
    except Exception as error:  # whatever a third party's code raises
        raise contract_error(family.name, "building the network from (spec, hyper)", error) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"family {family.name!r}: its network is a {type(network).__name__}, not a torch.nn.Module"
        )
    return network


def _state_of(family: Family, spec: ModelSpec, hyper: Any) -> dict[str, tuple[int, ...]]:
    if family.state is None:
        return {}
    try:
        return {name: tuple(shape) for name, shape in family.state(spec, hyper).items()}
    except TfxError:
        raise
    except Exception as error:  # whatever a third party's code raises
        raise contract_error(family.name, "the state of (spec, hyper)", error) from error


def _differing(has: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """The first state tensor that two networks do not share, as each has it."""
    name = min(name for name in {*has, *wanted} if has.get(name) != wanted.get(name))
    said = (f"{list(state[name])}" if name in state else "none" for state in (has, wanted))
    return "{}: the specification has {}, its network {}".format(name, *said)


def hyper_of(family: Family, values: Mapping[str, Any]) -> Any:
    """Complete hyper-parameters by the family's defaults; lists become tuples.

    Raises:
        ConfigError: unknown name, wrong type, a number that is not finite, or a word that is not one of the
            choices.
    """
    values = {family.renamed.get(name, name): value for name, value in values.items()}
    known = [entry.name for entry in dataclasses.fields(family.hyper)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{family.name} has no hyper-parameter {name!r}{suggestion(name, known)}")
    hyper = config_from_dict(family.hyper, values, "hyper.")
    for name, value in dataclasses.asdict(hyper).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"hyper.{name} {value} must be finite")
    return hyper


def count_costs(spec: ModelSpec) -> tuple[int, float]:
    """Count parameters, and billions of floating-point operations per second of audio (one chunk, B = 1)."""
    with torch.device("meta"):
        network = build_network(spec).eval()
        # The fused kernels are not known to the counter; the plain ones multiply the same matrices.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            meta_forward(network, spec)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    seconds = spec.chunk_samples / spec.stft.sample_rate
    return parameters, round(counter.get_total_flops() / seconds / 1e9, 2)
