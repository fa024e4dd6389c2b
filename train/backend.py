"""The ``torch`` backend: the eager network, from a bundle's weights; and new bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tfswa.runtime.backends import BackendOptions, filled
from tfswa.runtime.backends.torchscript import TorchThreads, jit_allowed, run_torch, torch_device
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError, reason
from tfswa.runtime.model.bundle import WEIGHTS, Bundle
from tfswa.runtime.model.opening import Model
from tfswa.runtime.model.spec import INPUT, ModelSpec
from tfswa.train.families import build_network, new_spec

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class TorchSession:
    """Runs the eager network; see ``Session``. Precision ``fp32``, or ``fp16``/``bf16`` by autocast.

    Raises:
        BackendUnavailable: the device is missing, or the model is an exported file without weights.
    """

    name = "torch"
    reentrant = True
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        self.device = torch_device(options.device)
        self._threads = TorchThreads(options.threads)
        precision = options.precision or "fp32"
        if precision != "fp32" and precision not in AUTOCAST:
            raise UsageError(f"backend torch has no precision {precision!r}: choose fp32, fp16 or bf16")
        self.autocast = AUTOCAST.get(precision)
        self._network: Any = load_network(model).to(self.device)
        self.spec = model.spec
        assert model.bundle is not None
        self.artifact = (WEIGHTS, model.bundle.files[WEIGHTS].sha256)
        self.versions = {"torch": torch.__version__}
        self.description = f"torch {torch.__version__} eager, {precision} on {self.device}"

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives; see ``Session``."""
        self._threads.apply()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return run_torch(self._network, self.spec, given, self.device)

    def close(self) -> None:
        """Release the network."""
        self._network = None
        self._threads.restore()


class CompiledSession(TorchSession):
    """The eager network through ``torch.compile``; see ``Session``. Precision ``fp32`` alone.

    It compiles while it is loaded, for minutes, and again for a larger batch; smaller ones are filled up with
    silence. What was compiled is kept by torch for the next time. (Cast to bfloat16 and compiled by torch
    2.13 for a CPU, the embedded model gives NaN.)

    Raises:
        BackendUnavailable: as for ``TorchSession``, or it cannot be compiled here.
    """

    name = "torch-compile"
    reentrant = False
    precisions = ("fp32",)
    compiles = True

    def __init__(self, model: Model, options: BackendOptions):
        if options.precision not in (None, "fp32"):
            raise UsageError(f"backend torch-compile has no precision {options.precision!r}: choose fp32")
        super().__init__(model, options)
        self._network = torch.compile(self._network, fullgraph=True, dynamic=False)
        self._batch = 1
        try:
            with jit_allowed():
                super().infer(
                    {name: np.zeros((1, *shape), np.float32) for name, shape in model.spec.takes.items()}
                )
        except Exception as error:  # what a compiler that is not there makes torch raise has no common base
            why = getattr(error, "inner_exception", error)
            unknown = isinstance(why, torch._dynamo.exc.Unsupported)  # such as recurrent layers
            needs = "" if unknown else "it needs a C++ compiler (apt-get install g++), or "
            raise BackendUnavailable(
                f"torch {torch.__version__} cannot compile {model.spec.family}: {reason(why)}; "
                f"{needs}use --backend torch"
            ) from error
        self.description = self.description.replace("eager", "compiled")

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives; see ``Session``."""
        items = len(given[INPUT])
        self._batch = max(self._batch, items)
        with jit_allowed():
            found = super().infer({name: filled(value, self._batch) for name, value in given.items()})
        return {name: value[:items] for name, value in found.items()}


def load_network(model: Model) -> nn.Module:
    """Build a bundle's network in eval mode, weights in float32.

    Raises:
        BackendUnavailable: an exported file or a published graph holds no weights for an eager network.
        BundleError: the weights do not fit the family.
    """
    if model.bundle is None:
        raise BackendUnavailable(
            f"{model.name} is an exported file, the eager network needs a bundle: "
            "use --backend ort or torchscript"
        )
    if model.spec.family is None:
        raise BackendUnavailable(
            f"{model.name} is a published graph without weights, torch cannot run it: use --backend ort, "
            "openvino or trt"
        )
    return network_with(model.bundle.weights(), model.spec, model.name)


def network_with(weights: Mapping[str, NDArray[Any]], spec: ModelSpec, name: str) -> nn.Module:
    """Build a network in eval mode with these weights, in float32.

    Raises:
        BundleError: the weights do not fit the family; ``name`` is whose they are.
    """
    network = build_network(spec).eval()
    values = {
        key: torch.from_numpy(value.astype(np.float32) if value.dtype == np.float16 else value)
        for key, value in weights.items()
    }
    try:
        network.load_state_dict(values)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise BundleError(f"{name}: weights do not fit {spec.family}: {' '.join(lines[1:3])}") from error
    return network.requires_grad_(False)


def new_bundle(
    family: str,
    path: Path,
    *,
    seed: int = 0,
    stems: Sequence[str] = ("vocals", "accompaniment"),
    hyper: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    force: bool = False,
    **spec_options: Any,
) -> Bundle:
    """Make a bundle with untrained, seeded weights.

    Args:
        family: its name.
        path: where the bundle goes.
        seed: of the weights; global random state is left as it was.
        stems: names of the outputs.
        hyper: hyper-parameters that differ from the family's defaults.
        precision: how weights are stored, ``fp32`` or ``fp16``.
        force: replace an existing bundle.
        spec_options: further arguments of ``new_spec`` (stft, chunk, channels, residual_stem ...).

    Raises:
        ConfigError: unknown family or hyper-parameter.
        OutputExists: the bundle is there.
    """
    spec = new_spec(family, stems=stems, hyper=hyper, weights_license="CC0-1.0", **spec_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(spec)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    return Bundle.create(
        path, spec, weights, provenance={"command": "tfx new", "seed": seed}, precision=precision, force=force
    )
