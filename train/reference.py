"""The reference that parity is measured against: the eager network, and a host of its own.

Nothing of ``runtime/stft`` or ``runtime/overlap`` is used: torch.stft and torch.istft, and overlap-add
written plainly in float64 over the same chunk plan. A fault of the host therefore cannot cancel out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tfswa.runtime.errors import UsageError
from tfswa.runtime.model.bundle import GRAPH
from tfswa.runtime.model.spec import INPUT, NEXT, OUTPUT, SAMPLES, STATE, STEM_SAMPLES, ModelSpec
from tfswa.runtime.stream.codec import first_tensors
from tfswa.train.families.contract import call
from tfswa.train.spectral import DifferentiableStft

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model


class _Enough(Exception):
    """The rest of a network need not be run."""


class TorchReference:
    """Eager float32 network of a bundle on the CPU.

    Args:
        model: a model whose weights are at hand (a bundle).

    Raises:
        UsageError: the model is a published graph.
        BundleError: the weights are damaged or do not fit the family.
    """

    def __init__(self, model: Model):
        from tfswa.train.backend import load_network

        if model.spec.family is None:
            raise UsageError(
                f"{model.name} is a published graph without weights, which this reference needs: use "
                "--reference graph"
            )
        self.spec = model.spec
        self.network = load_network(model)
        self.kind, self.exact = torch.float32, False
        self.description = f"torch {torch.__version__} eager float32 on cpu"

    def separate(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]``."""
        return separate_whole(self.network, self.spec, torch.from_numpy(mixture)).numpy()

    def network_output(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.floating]]:
        """What the network alone gives of what it takes, by name; of what is lacking it is given zeros."""
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value).to(self.kind) for name, value in given.items()}
            found = call(self.network, self.spec, tensors)
            return {name: value.numpy() for name, value in found.items()}

    def separate_once(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]`` in one pass however long: nothing is cut, discarded or cross-faded.

        N is (T - 1) * hop for a T that is a multiple of ``chunk.multiple``.
        """
        with torch.inference_mode():
            piece = torch.from_numpy(np.ascontiguousarray(mixture)).to(self.kind)
            stft = DifferentiableStft(self.spec.stft, dtype=self.kind)
            return _separate_chunk(self.network, self.spec, stft, piece, {}).double().numpy()

    def attention_maps(self, planes: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Attention weights by module, of one item ``[1, 2*C, T, F]``; see ``train.attention``."""
        from tfswa.train.attention import attention_maps

        given = first_tensors(self.spec, {INPUT: planes})
        return attention_maps(self.network, *map(torch.from_numpy, given.values()))

    def module_shapes(self, planes: NDArray[np.float32]) -> dict[str, tuple[int, ...]]:
        """Shapes of what modules give for ``[1, 2*C, T, F]``, by path, in the order in which they end.

        Modules that are called several times, or that give something else than one tensor, are left out.
        The network itself is the last, its path is empty.
        """
        shapes: dict[str, list[tuple[int, ...] | None]] = {}

        def note(name: str, output: object) -> None:
            calls = shapes.setdefault(name, [])
            calls.append(tuple(output.shape) if isinstance(output, Tensor) else None)

        self._run_hooked(planes, [name for name, _ in self.network.named_modules()], note)
        return {name: calls[0] for name, calls in shapes.items() if len(calls) == 1 and calls[0] is not None}

    def module_outputs(
        self, planes: NDArray[np.float32], modules: Sequence[str]
    ) -> dict[str, NDArray[np.floating]]:
        """What modules of ``module_shapes`` give, by path."""
        outputs: dict[str, NDArray[np.floating]] = {}

        def keep(name: str, output: object) -> None:
            assert isinstance(output, Tensor)
            outputs[name] = output.clone().numpy()  # what is computed in place later must not show
            if len(outputs) == len(modules):
                raise _Enough

        with suppress(_Enough):
            self._run_hooked(planes, modules, keep)
        return outputs

    def _run_hooked(
        self, planes: NDArray[np.float32], modules: Sequence[str], tell: Callable[[str, object], None]
    ) -> None:
        """Run the network; ``tell`` gets what each of the modules gives."""
        with ExitStack() as hooks:
            for name in modules:
                module = self.network.get_submodule(name)
                hook = module.register_forward_hook(lambda _, __, output, name=name: tell(name, output))
                hooks.callback(hook.remove)
            self.network_output({INPUT: planes})


class Float64Reference(TorchReference):
    """The same in float64: what it differs by from the float32 one is that one's own rounding.

    Tables that a network computes in float32 for itself (angles of rotary positions) stay as they are.
    """

    def __init__(self, model: Model):
        super().__init__(model)
        self.network = self.network.double()
        self.kind, self.exact = torch.float64, True
        self.description = f"torch {torch.__version__} eager float64 on cpu"

    def separate(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]``."""
        return separate_whole(self.network, self.spec, torch.from_numpy(mixture).double()).numpy()


class GraphReference:
    """The graph that others published, its own bytes in ONNX Runtime, and the host of the other references.

    Args:
        model: a bundle that holds such a graph.

    Raises:
        UsageError: it holds weights.
        BundleError: the graph is damaged.
        BackendUnavailable: onnxruntime is missing.
    """

    exact = False

    def __init__(self, model: Model):
        from tfswa.train.published import PublishedNetwork

        if model.spec.family is not None:
            raise UsageError(f"{model.name} holds weights and no published graph: use --reference torch")
        self.spec = model.spec
        self.network = PublishedNetwork(model.file(GRAPH), model.spec)
        self.description = f"{GRAPH}, as it was published, in {self.network.description}"

    def separate(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]``."""
        return separate_whole(self.network, self.spec, torch.from_numpy(mixture)).numpy()

    def separate_once(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]`` of one chunk: a graph has a fixed length."""
        if mixture.shape[1] != self.spec.chunk_samples:
            raise UsageError(
                f"{mixture.shape[1]} samples in one pass, the published graph takes "
                f"{self.spec.chunk_samples}: give it as many"
            )
        piece = torch.from_numpy(np.ascontiguousarray(mixture))
        stft = DifferentiableStft(self.spec.stft)
        with torch.inference_mode():
            return _separate_chunk(self.network, self.spec, stft, piece, {}).double().numpy()

    def network_output(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.floating]]:
        """What the network alone gives of what it takes, by name."""
        with torch.inference_mode():
            return {OUTPUT: self.network(torch.from_numpy(given[INPUT])).numpy()}


@torch.no_grad()
def separate_whole(
    network: nn.Module, spec: ModelSpec, mixture: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """Separate a whole signal in memory, chunk by chunk, plainly.

    Args:
        network: in eval mode, on ``device``.
        spec: its contract.
        mixture: ``[C, N]``, of the network's type.
        device: where the network runs.

    Returns:
        Stems ``[S, C, N]`` float64.
    """
    stft = DifferentiableStft(spec.stft, device, mixture.dtype)
    chunk, fade = spec.chunk_samples, spec.fade_samples
    context, after = spec.context_samples, spec.context_after_samples
    kept = chunk - context - after
    step = kept - fade
    samples = mixture.shape[1]
    stems = torch.zeros(len(spec.stems), spec.channels, samples, dtype=torch.float64)
    if samples == 0:
        return stems
    count = 1 + max(0, math.ceil((samples - kept) / step))
    padded = torch.zeros(spec.channels, context + (count - 1) * step + kept + after, dtype=mixture.dtype)
    padded[:, context : context + samples] = mixture
    state: dict[str, Tensor] = {}
    rise = (torch.arange(fade, dtype=torch.float64) + 0.5) / max(fade, 1)
    for k in range(count):
        piece = padded[:, k * step : k * step + chunk]
        estimate = _separate_chunk(network, spec, stft, piece.to(device), state).cpu().double()
        estimate = estimate[..., context : context + kept]
        if k > 0:
            estimate[..., :fade] *= rise
        if k < count - 1:
            estimate[..., kept - fade :] *= 1 - rise
        end = min(samples, k * step + kept)
        stems[..., k * step : end] += estimate[..., : end - k * step]
    return stems


def _separate_chunk(
    network: nn.Module, spec: ModelSpec, stft: DifferentiableStft, piece: Tensor, state: dict[str, Tensor]
) -> Tensor:
    """``[C, N] -> [S, C, N]``; ``state`` becomes that of the next chunk."""
    planes, spectrum = stft.forward(piece[None])
    found = call(network, spec, {INPUT: planes, SAMPLES: piece[None], **state})
    state.update({STATE + name: found[NEXT + name] for name in spec.state})
    given = dict(zip(spec.outputs, found[OUTPUT][0], strict=True))
    stems = torch.zeros(len(spec.stems), *piece.shape, dtype=piece.dtype, device=piece.device)
    for index, name in enumerate(spec.stems):
        if name in given:
            others = spectrum if name == spec.unseen_stem else torch.zeros_like(spectrum)
            stems[index] = stft.inverse(given[name][None], others, piece.shape[-1])[0]
            if spec.samples:
                stems[index] += found[STEM_SAMPLES][0, spec.outputs.index(name)]
    if spec.residual_stem is not None:
        index = spec.stems.index(spec.residual_stem)
        others = stems.sum(dim=0) - stems[index]
        stems[index] = piece - spec.residual_gain * others
    return stems
