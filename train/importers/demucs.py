"""Files of the package ``demucs``, read without it: a pickle, or safetensors with the same in its metadata.

::

    {"klass": demucs.htdemucs.HTDemucs, "args": (), "kwargs": {"sources": [...], "segment": 39/5, ...},
     "state": {"encoder.0.conv.weight": ...}, "training_args": {...}}

A pickle of it names two classes, of which nothing is run: torch reads it with ``weights_only``, and is given
stand-ins that can do nothing in the place of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from tfswa.runtime.errors import BundleError, reason
from tfswa.train.importers.values import MOST_BITS, check_values

SECTION = "htdemucs"  # of a configuration: what the package's class is made with
CLASS = "demucs.htdemucs.HTDemucs"
MAX_PART = 10**9  # of the fraction that says how long a chunk is


class NetworkName:
    """In the place of the package's class: it is named in a file, and nothing else."""


def length_in_seconds(*parts: Any) -> float:
    """In the place of ``fractions.Fraction``, of which ``1e999999999`` would make a number of a gigabyte."""
    if len(parts) == 1 and isinstance(parts[0], str):
        found = re.fullmatch(r"(\d{1,9})(?:/(\d{1,9}))?", parts[0])
        parts = () if found is None else tuple(int(part or 1) for part in found.groups())
    if len(parts) != 2 or not all(type(part) is int and 0 < part <= MAX_PART for part in parts):
        raise ValueError("a fraction that is no length in seconds")
    return float(Fraction(*parts))


STAND_INS: list[Any] = [(NetworkName, CLASS), (length_in_seconds, "fractions.Fraction")]


def package_parts(path: Path, loaded: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and what the class was made with, of a pickle for which ``is_package`` holds.

    Raises:
        BundleError: it is of another class, or holds no weights.
    """
    if loaded["klass"] is not NetworkName:
        raise BundleError(f"{path} is of the class {_named(loaded['klass'])}, only {CLASS} is read here")
    return _parts(path, loaded["state"], loaded.get("args", ()), loaded["kwargs"])


def package_config(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What a class was made with, as a configuration that the importer of its networks takes.

    The stems are among it, and that the package's command divides a track by its deviation.
    """
    sources = made_with.get("sources")
    return {
        "training": {
            "instruments": list(sources) if isinstance(sources, Sequence) else None,
            "samplerate": made_with.get("samplerate"),
            "segment": made_with.get("segment"),
        },
        "inference": {"normalize": True},
        SECTION: {str(name): value for name, value in made_with.items()},
    }


def is_package(loaded: Mapping[str, Any]) -> bool:
    """Whether what a pickle holds has the package's form."""
    return {"klass", "state", "kwargs"} <= loaded.keys()


def says_its_class(path: Path) -> bool:
    """Whether a file is safetensors whose metadata name a class, as the package writes them."""
    with path.open("rb") as stream:
        if stream.read(9)[8:] != b"{":
            return False
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return "klass" in (file.metadata() or {})


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and what the class was made with, of safetensors of the package; see ``package_config``.

    Raises:
        BundleError: it is no such file, damaged, or of another class.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if about.get("klass") != CLASS or "structure" in about:
            raise ValueError(f"its class is {about.get('klass')!r}, only {CLASS} of plain tensors is read")
        args, kwargs = (
            json.loads(about.get(name, empty), object_hook=_number)
            for name, empty in (("args", "[]"), ("kwargs", "{}"))
        )
    except Exception as error:  # safetensors has errors of its own, which are no ValueErrors
        raise BundleError(f"{path} is no file of the package demucs: {reason(error)}") from error
    return _parts(path, state, args, kwargs)


def _number(found: dict[str, Any]) -> Any:
    """A fraction as the package writes it in JSON; another table as it is."""
    if found.get("_type") == "fraction":
        return length_in_seconds(found.get("numerator"), found.get("denominator"))
    return found


def _parts(path: Path, state: Any, args: Any, kwargs: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(state, Mapping) and "__quantized" in state:
        raise BundleError(f"{path} holds weights packed by diffq, which are not read: take the unpacked ones")
    if not isinstance(kwargs, Mapping) or not isinstance(args, Sequence) or len(args) > 1:
        raise BundleError(f"{path} does not say what {CLASS} was made with: args and kwargs are no such")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BundleError(f"{path} holds no weights under 'state': it is no file of the package demucs")
    made_with = {"sources": args[0], **kwargs} if args else dict(kwargs)
    try:
        check_values(made_with)
    except ValueError as error:
        raise BundleError(f"{path} does not say what {CLASS} was made with: {error}") from error
    return {text_of(path, name): value for name, value in state.items()}, made_with


def _named(found: Any) -> str:
    """A class or a function by its name, anything else by its type's."""
    return str(getattr(found, "__name__", type(found).__name__))


def text_of(path: Path, name: Any) -> str:
    """A name in a file, as a text.

    Raises:
        BundleError: it is neither a text nor a small number.
    """
    if isinstance(name, str):
        return name
    if isinstance(name, int) and name.bit_length() <= MOST_BITS:
        return str(name)
    raise BundleError(f"{path} names something by a {type(name).__name__}: save network.state_dict()")
