"""The ``aotinductor`` backend: a network compiled ahead by torch, for one torch and one kind of CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, import_library
from tfswa.runtime.backends.torchscript import TorchThreads, run_torch
from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import BackendUnavailable, BundleError, reason
from tfswa.runtime.model.archive import read_extra
from tfswa.runtime.model.spec import INPUT

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model

MADE_FOR = "made_for.json"  # in the package: what its code runs on


class AotInductorSession:
    """Runs a bundle's ``model.pt2``; see ``Session``. It takes one item at a time.

    Raises:
        BackendUnavailable: torch or the artifact is missing, or it was compiled for something else than what
            is here.
        BundleError: the file cannot be loaded.
    """

    name = "aotinductor"
    precisions = ("fp32",)
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        torch = import_library("torch", backend=self.name)
        package = import_library("torch._inductor.package", backend=self.name)
        if options.device != "cpu":
            raise BackendUnavailable(
                f"device {options.device} asked for, packages are compiled for the CPU: use --device cpu"
            )
        self.artifact = model.artifact("aotinductor", options.precision or "fp32")
        path = model.file(self.artifact[0])
        made_for, here = _made_for(path), machine(torch)
        if made_for != here:
            raise BackendUnavailable(
                f"{path} was compiled for {_in_words(made_for)}, here is {_in_words(here)}: "
                f"make it again with `tfx export {model.name} --format aotinductor --force`"
            )
        self._threads = TorchThreads(options.threads)
        self._spec, self._cpu = model.spec, torch.device("cpu")
        try:
            # Not by aoti_load_package: it also opens what else is in the archive, some of it by pickle.
            loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
            self._call: Any = package.AOTICompiledModel(loader)
        except RuntimeError as error:
            raise BundleError(
                f"{path} cannot be loaded by torch {torch.__version__}: {reason(error)}"
            ) from error
        self.versions = {"torch": torch.__version__}
        self.description = f"aotinductor, torch {torch.__version__}, fp32 on cpu"

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives; see ``Session``."""
        self._threads.apply()
        items = []
        for item in range(len(given[INPUT])):
            alone = {name: value[item : item + 1] for name, value in given.items()}
            items.append(run_torch(self._call, self._spec, alone, self._cpu))
        return {name: np.concatenate([item[name] for item in items]) for name in self._spec.gives}

    def close(self) -> None:
        """Release the network."""
        self._call = None
        self._threads.restore()


def machine(torch: Any) -> dict[str, str]:
    """What compiled code depends on, of the torch and the CPU that are here."""
    return {"torch": str(torch.__version__), "cpu": str(torch.backends.cpu.get_cpu_capability())}


def _made_for(path: Path) -> dict[str, str]:
    text = read_extra(path, MADE_FOR)
    try:
        found = parse_json(text or "")
        if not isinstance(found, dict):
            raise ValueError(f"{MADE_FOR} is no object")
    except ValueError as error:
        raise BundleError(f"{path} is not a package of tfx, or damaged: export it again") from error
    return found


def _in_words(made_for: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in made_for.items())
