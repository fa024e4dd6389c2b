"""Options that mean the same in every command that has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from tfswa.runtime.limits import MOST_BATCH, MOST_THREADS, MOST_WIENER

F = TypeVar("F", bound=Callable[..., Any])


class GivenPath(click.Path):
    """A path that is not empty: ``"$SONG"``, where it is unset, would be the working folder.

    Whether it may be read is found when it is opened: one input among many that may not costs the others
    nothing.
    """

    def __init__(self, *, exists: bool = False, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, dir_okay=dir_okay, readable=False, path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """As ``click.Path`` does.

        Raises:
            click.BadParameter: it is empty.
        """
        if value == "":
            self.fail("an empty path: for this folder say .", param, ctx)
        return super().convert(value, param, ctx)


class OutputPath(GivenPath):
    """A path that is to be written: whether it can be is found before the work, not after minutes of it.

    A default is not looked at: the option may not matter. Commands look at theirs when they need it.

    Args:
        kind: ``file``; ``folder``, into which files are put; ``new``, what is made whole beside its name.
    """

    def __init__(self, kind: Literal["file", "folder", "new"]) -> None:
        super().__init__(dir_okay=kind != "file")
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """As ``GivenPath`` does.

        Raises:
            UsageError: it cannot be written.
        """
        path = super().convert(value, param, ctx)
        if param is None or value != param.default:
            from tfswa.runtime.files import checks

            check = {"file": checks.check_file, "folder": checks.check_folder, "new": checks.check_new}
            check[self.kind](Path(os.fsdecode(path)))
        return path


backend = click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="auto, ort, openvino, trt, torchscript, torch, torch-compile, aotinductor, triton, or a plug-in.",
)
precision = click.option("--precision", help="Precision of the artifact: fp32, fp16, ...; default: fp32.")
device = click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N; never falls back."
)
backend_device = click.option(
    "--device",
    help="cpu or cuda, with --backend ort also tensorrt or rtx, and cuda:N ...; with --backend triton "
    "grpc://HOST:PORT; never falls back; default: cpu, with --backend trt cuda, with --backend auto a GPU "
    "where one works, else cpu.",
)
threads = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads; default: all cores."
)
batch = click.option(
    "--batch",
    type=click.IntRange(1, MOST_BATCH),
    default=1,
    show_default=True,
    help="Chunks computed at once; the output does not depend on it.",
)
wiener = click.option(
    "--wiener",
    type=click.IntRange(0, MOST_WIENER),
    default=0,
    show_default=True,
    metavar="N",
    help="Iterations of a multichannel Wiener filter after the network; parity does not cover it. 0: none.",
)
overlap = click.option(
    "--overlap",
    default="1",
    show_default=True,
    metavar="1|2|4|RULE",
    help="How many shifted chunks every sample is the weighted mean of; or a rule: msst:N of the training "
    "suite MSST, mean:N, demucs:0.25 of the package. Takes as many times as long; parity does not cover it.",
)
force = click.option("--force", is_flag=True, help="Replace outputs that are there; default: refuse.")
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout; default: a table."
)

trust = click.option(
    "--trust",
    "trusted",
    is_flag=True,
    help="Run TorchScript, packages and engines in MODEL that this machine did not make: they can do what "
    "you can. Remembered by hash; default: refuse them.",
)


def models_option(command: F) -> F:
    """``-m MODEL``, as often as there are models."""
    return click.option(
        "-m",
        "--model",
        "models",
        multiple=True,
        default=("demo",),
        show_default="demo",
        help="A bundle, a .onnx, .ts or .pt2 file, or a name that `tfx models` lists; several are combined.",
    )(command)


def combine_options(command: F) -> F:
    """``--combine --weights``."""
    weights = click.option(
        "--weights",
        multiple=True,
        metavar="[STEM=]W,W,...",
        help="How much each model counts, for all stems or for one, 0 or more; default: all alike.",
    )
    combine = click.option(
        "--combine",
        type=click.Choice(["mean", "median", "max", "min"]),
        help="Of several models: mean or median of the waveforms; max or min takes each bin of a spectrum "
        "from the model that is loudest or quietest there; default: mean.",
    )
    for option in (weights, combine):
        command = option(command)
    return command


def output_option(
    help: str, default: str | None = None, *, kind: Literal["folder", "new"] = "new"
) -> Callable[[F], F]:
    """``-o PATH``; for ``kind`` see ``OutputPath``."""
    return click.option(
        "-o", "--output", type=OutputPath(kind), default=default, show_default=True, help=help
    )


def backend_options(command: F) -> F:
    """``--backend --precision --device --threads --batch``."""
    for option in (batch, threads, backend_device, precision, backend):
        command = option(command)
    return command
