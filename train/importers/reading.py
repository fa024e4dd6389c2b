"""Files of weights, read as data.

They are safetensors, or pickles of torch of which nothing but tensors and plain values is built
(``weights_only``). In a file of torch the weights are its top level, or one dictionary within it::

    {"layers.0.weight": ...}                                      torch.save(network.state_dict(), ...)
    {"epoch": 3, "state_dict": {"model.layers.0.weight": ...}}    Lightning
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tfswa.runtime.errors import BundleError, UsageError, did_you_mean, reason
from tfswa.runtime.escape import shown
from tfswa.runtime.model.archive import check_archive
from tfswa.train.importers.demucs import (
    STAND_INS,
    is_package,
    package_config,
    package_parts,
    read_safetensors,
    says_its_class,
    text_of,
)

SHOWN = 3  # names of a kind in a message
LONGEST = 200  # characters of one of them
PART = re.compile(r"-(\d{5})-of-(\d{5})\.")  # of weights in several files
PACKED = "state"  # what the package demucs calls its weights
INDEX = ".index.json"  # what lies beside them
State = dict[str, Tensor]


def read_weights(source: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """As ``read_tensors``; and the configuration that a file of the package ``demucs`` holds, or none.

    Raises:
        BundleError: as of ``read_tensors``, or a package's file is of another class.
    """
    loaded = read_tensors(source)
    if is_package(loaded):
        state, made_with = package_parts(source, loaded)
    elif says_its_class(source):
        state, made_with = read_safetensors(source)
    else:
        return loaded, {}
    return {PACKED: state}, package_config(made_with)


def read_tensors(source: Path) -> Mapping[str, Any]:
    """Read a file of safetensors or of torch as data; of the latter no code is run.

    Returns:
        What its top level holds by name: tensors, and in a file of torch other values.

    Raises:
        BundleError: it is neither, damaged, or wants to run code.
    """
    _check_name(source)
    with source.open("rb") as stream:
        beginning = stream.read(9)
    try:
        if beginning[8:] == b"{":  # after the length of the header, which is JSON
            from safetensors.torch import load_file

            return load_file(source)
        if beginning.startswith(b"PK"):
            check_archive(source)
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it does not read it says so below
            loaded = torch.load(source, map_location="cpu", weights_only=True)
    except BundleError:
        raise
    except Exception as error:  # what a damaged pickle makes torch raise has no common base
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is not None:
            raise BundleError(
                f"{source} asks for {code[1]}, which is code and no weights: it was not run; "
                "save network.state_dict() alone, or safetensors"
            ) from None
        raise BundleError(
            f"{source} is no state dictionary of torch and no safetensors, or damaged: {_why(error)}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise BundleError(f"{source} holds a {type(loaded).__name__}: save network.state_dict()")
    return {text_of(source, name): value for name, value in loaded.items()}


def _why(error: Exception) -> str:
    """What torch says, without its advice to run the code that it found."""
    found = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
    return found[1] if found else reason(error)


def _check_name(source: Path) -> None:
    """Refuse one part of weights that lie in several files, and their index."""
    part = PART.search(source.name)
    if part is not None and int(part[2]) > 1:
        raise BundleError(
            f"{source} is part {int(part[1])} of {int(part[2])}: save all of its weights as one file"
        )
    if source.name.endswith(INDEX):
        raise BundleError(f"{source} is the index of weights in several files: save them as one file")


def chosen(source: Path, loaded: Mapping[str, Any], key: str | None) -> tuple[State, str, list[str]]:
    """Tensors of the dictionary that is meant, its key, and what lies beside them and is no tensor.

    Their names are without what ``torch.compile`` adds to them.
    """
    inner = {
        name: value
        for name, value in loaded.items()
        if isinstance(value, Mapping) and value and all(isinstance(item, Tensor) for item in value.values())
    }
    top = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if key is None:
        if top:
            key = ""
        elif len(inner) == 1:
            (key,) = inner
        elif inner:
            raise UsageError(f"{source} holds several state dictionaries ({few(inner)}): choose with --key")
        else:
            raise BundleError(
                f"{source} holds no weights ({few(loaded) or 'it is empty'}): save network.state_dict()"
            )
    if key == "":
        others = sorted(loaded.keys() - top.keys() - inner.keys()) if top else []
        return _uncompiled(source, top), key, others
    if key not in inner:
        raise UsageError(
            f"{source} holds no state dictionary {key!r}{did_you_mean(key, inner)}; "
            f"it holds {few(inner) or 'none'}"
        )
    return _uncompiled(source, {text_of(source, name): value for name, value in inner[key].items()}), key, []


def uncompiled_name(name: str) -> str:
    """Without ``_orig_mod``, within which ``torch.compile`` puts any module that is compiled by itself."""
    return re.sub(r"(?<![^.])_orig_mod\.", "", name)


def _uncompiled(source: Path, found: State) -> State:
    plain = {uncompiled_name(name): value for name, value in found.items()}
    if len(plain) < len(found):
        twice = [name for name in found if (short := uncompiled_name(name)) != name and short in found]
        raise BundleError(
            f"{source} holds weights of one name compiled and not compiled ({few(twice)}): save it with one"
        )
    return plain


def array_of(source: Path, name: str, value: Tensor) -> NDArray[Any]:
    """A weight as numpy has it; floats of all kinds, some of which numpy lacks, as float32."""
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        raise BundleError(
            f"{source}: {name} is no plain tensor of real numbers: convert it, and save it again"
        )
    array: NDArray[Any] = (value.float() if value.is_floating_point() else value).detach().numpy()
    return array


def few(names: Iterable[str], between: str = ", ") -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = len(every) - SHOWN
    return between.join(map(short, every[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def short(text: str) -> str:
    """A text of a file as a message may have it: one line, and no longer than that is."""
    return shown(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")
