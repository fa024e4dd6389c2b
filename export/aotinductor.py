"""AOTInductor: the network of a bundle compiled to machine code, for the torch and the kind of CPU here."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tfswa.export.artifact import Exported, bundle_of, check_weights, produce
from tfswa.runtime.backends.aotinductor import MADE_FOR, machine
from tfswa.runtime.backends.torchscript import jit_allowed
from tfswa.runtime.errors import ExportError, reason
from tfswa.runtime.model.digest import close_archive
from tfswa.runtime.model.opening import METADATA, Model, embed

NAME = "model.pt2"


def export_aotinductor(
    model: Model,
    output: Path | None = None,
    *,
    audio: Path | None = None,
    force: bool = False,
) -> Exported:
    """Compile a bundle to ``model.pt2`` for one item at a time, and compare that with the eager network.

    Args:
        model: a bundle.
        output: where a copy of the bundle goes; default: into the model's own bundle.
        audio: what to compare on; default: generated music.
        force: replace an existing artifact or ``output``.

    Raises:
        UsageError: the model is an exported file, or a published graph without weights.
        OutputExists: the artifact or ``output`` is there and ``force`` is False.
        ExportError: torch cannot compile it, or it differs from eager; nothing is written.
    """
    check_weights(model, "compiled code")
    carried = {
        f"{METADATA}.json": embed(model.spec, "fp32", bundle_of(model, "export").digest, sealed=True),
        MADE_FOR: json.dumps(machine(torch)),
    }

    def convert(network: nn.Module, path: Path) -> dict[str, Any]:
        # One item: with a free batch the code is slower, and a shape that it was not compiled for is found
        # out in the middle of a song.
        with torch.no_grad(), jit_allowed(), _quiet():
            given = tuple(torch.zeros(1, *shape) for shape in model.spec.takes.values())
            program = torch.export.export(network, given)
            try:
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(path), inductor_configs={"freezing": True}
                )
            except Exception as error:  # whatever a compiler that is not there makes torch raise
                raise ExportError(
                    f"torch {torch.__version__} cannot compile {model.spec.family}: {reason(error)}; it "
                    "needs a C++ compiler: apt-get install g++"
                ) from error
        with zipfile.ZipFile(path, "a") as archive:
            for name, text in carried.items():
                archive.writestr(f"{path.stem}/extra/{name}", text)
        close_archive(path)
        return machine(torch)

    return produce(model, NAME, "aotinductor", convert, output=output, audio=audio, force=force)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's own affairs from the user."""
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
