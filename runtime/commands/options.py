"""Options that mean the same in every command that has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

backend = click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="auto, ort, openvino, trt, torchscript, torch, torch-compile, aotinductor, or a plug-in.",
)
precision = click.option("--precision", help="Precision of the artifact: fp32, fp16, ...; default: fp32.")
device = click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N; never falls back."
)
backend_device = click.option(
    "--device",
    help="cpu or cuda, with --backend ort also tensorrt or rtx, and cuda:N ...; never falls back; default: "
    "cpu, with --backend trt cuda, with --backend auto a GPU where one works, else cpu.",
)
threads = click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
batch = click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Chunks computed at once; the output does not depend on it.",
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


def model_option(command: F) -> F:
    """``-m MODEL``."""
    return click.option(
        "-m",
        "--model",
        default="demo",
        show_default=True,
        help="A bundle, a .onnx, .ts or .pt2 file, or a name that `tfx models` lists.",
    )(command)


def output_option(help: str, default: str | None = None) -> Callable[[F], F]:
    """``-o PATH``."""
    return click.option(
        "-o", "--output", type=click.Path(path_type=Path), default=default, show_default=True, help=help
    )


def backend_options(command: F) -> F:
    """``--backend --precision --device --threads --batch``."""
    for option in (batch, threads, backend_device, precision, backend):
        command = option(command)
    return command
