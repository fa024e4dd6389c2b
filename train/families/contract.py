"""What a family's network must be able to do, checked by name when it is built rather than in a traceback.

for                          the network needs
everything                   forward: [B, 2*C, T, F] -> [B, S, 2*C, T, F]; with samples or state, see call
fixed input normalization    set_statistics(mean, std), features where that is not of the planes, and the
                             attribute statistics where the weight that it sets is not called "mean"
pre-training                 features and reconstruct
optim.checkpointing          the attribute checkpointing
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tfswa.runtime.errors import ConfigError, TfxError
from tfswa.runtime.model.spec import INPUT, ModelSpec

_IN_WORDS = "[B, stems, 2 x channels, T, F]"


def contract_error(family: str, what: str, error: Exception) -> ConfigError:
    """Return the one line for an exception inside a family's own code: what, where, and why."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    why = " ".join(str(error).split())[:200]
    return ConfigError(
        f"family {family!r}: {what} fails at {Path(frame.filename).name}:{frame.lineno} "
        f"({type(error).__name__}: {why}): mend the network"
    )


def call(network: nn.Module, spec: ModelSpec, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call a network on named tensors.

    Its ``forward`` takes them by place, in the order of ``ModelSpec.takes``, and gives one tensor, or a tuple
    in the order of ``ModelSpec.gives``.

    Args:
        network: in any mode.
        spec: the contract.
        given: ``mixture [B, 2*C, T, F]`` and what else the network takes; what is lacking is zeros.
    """
    found = network(*_arguments(spec, given))
    return dict(zip(spec.gives, found if isinstance(found, tuple) else (found,), strict=True))


def _arguments(spec: ModelSpec, given: Mapping[str, Tensor]) -> list[Tensor]:
    mixture = given[INPUT]
    return [
        given[name] if name in given else mixture.new_zeros(len(mixture), *shape)
        for name, shape in spec.takes.items()
    ]


def checked_forward(network: nn.Module, spec: ModelSpec, mixture: Tensor) -> Tensor:
    """Call the network, and compare names and shapes of what it gives with the contract's.

    Args:
        network: on any device, ``meta`` too.
        spec: the contract.
        mixture: ``[B, 2*C, T, F]``.

    Returns:
        Its stems.

    Raises:
        ConfigError: it fails, or gives something else than the contract says.
    """
    try:
        found = network(*_arguments(spec, {INPUT: mixture}))
    except TfxError:
        raise
    except Exception as error:  # whatever a third party's code raises
        raise contract_error(
            spec.family_in_words, f"forward of mixture {list(mixture.shape)}", error
        ) from error
    each = found if isinstance(found, tuple) else (found,)
    given = [list(one.shape) if isinstance(one, Tensor) else f"a {type(one).__name__}" for one in each]
    wanted = [[len(mixture), *shape] for shape in spec.gives.values()]
    if given != wanted:
        said, is_ = (given[0], wanted[0]) if len(given) == len(wanted) == 1 else (given, wanted)
        raise ConfigError(
            f"family {spec.family_in_words!r}: forward of mixture {list(mixture.shape)} gives {said}, the "
            f"contract is {is_} {_IN_WORDS if len(wanted) == 1 else ', '.join(spec.gives)}: mend its "
            "last layer"
        )
    stems: Tensor = each[0]
    return stems


def check_trainable(network: nn.Module, family: str, *, pretraining: bool, checkpointing: bool) -> None:
    """Check that a network has what its training will ask for.

    Raises:
        ConfigError: naming what is missing, and what it is for.
    """
    lacks = [name for name in ("features", "reconstruct") if not callable(getattr(network, name, None))]
    if pretraining and lacks:
        raise ConfigError(
            f"family {family!r} has no {' and no '.join(lacks)}, which pre-training (pretrain.share) needs: "
            "add what train/families/__init__.py describes, or train separation"
        )
    if checkpointing and not hasattr(network, "checkpointing"):
        raise ConfigError(
            f"family {family!r} has no attribute 'checkpointing', which optim.checkpointing sets: "
            "add it, or set optim.checkpointing=false"
        )


def features_of(network: nn.Module, planes: Tensor) -> Tensor:
    """Return what the network normalizes: its ``features``, or the planes themselves where it has none."""
    own = getattr(network, "features", None)
    result: Tensor = own(planes) if callable(own) else planes
    return result


def takes_statistics(network: nn.Module) -> bool:
    """Whether the network normalizes its input by fixed statistics."""
    return callable(getattr(network, "set_statistics", None))


def statistics_of(network: nn.Module) -> str:
    """Name of a weight that ``set_statistics`` sets: where a model is begun with it, it is left as it is."""
    return str(getattr(network, "statistics", "mean"))


def meta_forward(network: nn.Module, spec: ModelSpec, batch: int = 1) -> Tensor:
    """Run the contract's check on the device ``meta``: shapes alone, no memory and no arithmetic."""
    with torch.no_grad():
        return checked_forward(network, spec, torch.zeros(spec.input_shape(batch), device="meta"))
