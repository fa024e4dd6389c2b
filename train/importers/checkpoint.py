"""Weights that a user's own training left, as a bundle: which of them they are, and whether they fit.

A file is read as data: safetensors, or a pickle of torch of which nothing but tensors and plain values is
built (``weights_only``). In a file of torch the weights are its top level, or one dictionary within it::

    {"layers.0.weight": ...}                                      torch.save(network.state_dict(), ...)
    {"epoch": 3, "state_dict": {"model.layers.0.weight": ...}}    Lightning
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tfswa.runtime.errors import BundleError, ConfigError, OutputExists, UsageError, did_you_mean, reason
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model.archive import check_archive
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.config import ModelConfig
from tfswa.train.config_files import find_config, load_config, load_run_config
from tfswa.train.families import build_network, get_family, new_spec
from tfswa.train.strict import config_from_dict, parse_overrides

SHOWN = 3  # names of a kind in a message
State = dict[str, Tensor]


@dataclass(frozen=True)
class Picked:
    """The weights of a checkpoint under the names of the network.

    Attributes:
        weights: by name.
        key: of the dictionary within the file; empty for its top level.
        prefix: that was removed from each name.
        left_out: names in the file that are not used, sorted.
    """

    weights: State
    key: str
    prefix: str
    left_out: tuple[str, ...]


def import_checkpoint(
    source: Path,
    spec: ModelSpec,
    output: Path,
    *,
    key: str | None = None,
    prefix: str | None = None,
    drop: Sequence[str] = (),
    precision: str = "fp32",
    force: bool = False,
) -> tuple[Bundle, Picked]:
    """Make a bundle of a state dictionary.

    Args:
        source: a file of torch or of safetensors.
        spec: the model that the weights are of.
        output: the bundle.
        key: of the dictionary within a file of torch; None: the only one there is.
        prefix: beginning of the names of the weights; names that begin otherwise are left out. None: none, or
            the one that all names begin with.
        drop: beginnings of names that are left out.
        precision: how weights are stored, ``fp32`` or ``fp16``.
        force: replace an existing bundle.

    Raises:
        OutputExists: the bundle is there and ``force`` is False.
        UsageError: the file cannot be opened, or ``key`` or ``prefix`` is not in it, or more than one could
            be meant.
        BundleError: the file is damaged, wants to run code, or its weights do not fit.
    """
    if output.exists() and not force:  # before anything is read
        raise OutputExists(f"{output} is there already: replace it with --force, or choose another name")
    try:
        digest = sha256_of(source)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {reason(error)}") from error
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in build_network(spec).state_dict().items()}
    found, key, others = _chosen(source, read_tensors(source), key)
    kept = {name: value for name, value in found.items() if not name.startswith(tuple(drop))}
    ours = _names(spec, kept, wanted)
    wanted = {theirs: wanted[name] for theirs, name in ours.items()}
    prefix = _prefix(source, kept, wanted, prefix)
    weights = {name[len(prefix) :]: value for name, value in kept.items() if name.startswith(prefix)}
    left_out = sorted({*found.keys() - {prefix + name for name in weights}, *others})
    _check_fit(source, spec.family_in_words, weights, wanted, prefix)
    weights = {ours[name]: value for name, value in weights.items()}
    provenance = {
        "command": "tfx import checkpoint",
        "checkpoint": source.name,
        "checkpoint_sha256": digest,
        "key": key,
        "prefix": prefix,
    }
    arrays = {name: _array(source, name, value) for name, value in weights.items()}
    bundle = Bundle.create(output, spec, arrays, provenance=provenance, precision=precision, force=force)
    return bundle, Picked(weights, key, prefix, tuple(left_out))


def spec_of(
    family: str | None,
    config: str | None,
    *,
    stems: tuple[str, ...] | None = None,
    hyper: Sequence[str] = (),
    stft: Sequence[str] = (),
    chunk: Sequence[str] = (),
    channels: int = 2,
    license_: str | None = None,
) -> ModelSpec:
    """What weights are of: what is said here before the configuration, and that before the family's defaults.

    Args:
        family: its name; None: that of the configuration.
        config: a file, a name, or the folder of a run.
        stems: in order.
        hyper: hyper-parameters, ``key=value`` in TOML, as are ``stft`` and ``chunk``.
        stft: of the transform.
        chunk: of the chunks.
        channels: of the audio.
        license_: of the weights.

    Raises:
        UsageError: neither family nor configuration is named.
        ConfigError: an unknown key, or values that contradict each other.
    """
    model = ModelConfig()
    if config is not None and Path(config).is_dir():
        model = load_run_config(Path(config)).model
    elif config is not None:
        path, base = find_config(config)
        model = load_config(path, base=base).model
    elif family is None:
        raise UsageError("--family is missing: name the network's family, or its --config")
    entry = get_family(family or model.family)
    try:
        transform = config_from_dict(StftSpec, {**asdict(entry.stft), **parse_overrides(stft)}, "stft.")
        chunks = config_from_dict(ChunkSpec, {**asdict(entry.chunk), **parse_overrides(chunk)}, "chunk.")
    except BundleError as error:  # numbers that contradict each other
        raise ConfigError(str(error)) from error
    return new_spec(
        entry.name,
        stems=stems or model.stems,
        channels=channels,
        hyper={**model.hyper, **parse_overrides(hyper)},
        stft=transform,
        chunk=chunks,
        residual_stem=model.residual_stem or None,
        network_stems=None if stems else model.network_stems or None,
        weights_license=model.license if license_ is None else license_,
    )


def read_tensors(source: Path) -> Mapping[str, Any]:
    """Read a file of safetensors or of torch as data; of the latter no code is run.

    Returns:
        What its top level holds by name: tensors, and in a file of torch other values.

    Raises:
        BundleError: it is neither, damaged, or wants to run code.
    """
    with source.open("rb") as stream:
        beginning = stream.read(9)
    try:
        if beginning[8:] == b"{":  # after the length of the header, which is JSON
            from safetensors.torch import load_file

            return load_file(source)
        if beginning.startswith(b"PK"):
            check_archive(source)
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
            f"{source} is no state dictionary of torch and no safetensors, or damaged: {reason(error)}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise BundleError(f"{source} holds a {type(loaded).__name__}: save network.state_dict()")
    return {str(name): value for name, value in loaded.items()}


def _chosen(source: Path, loaded: Mapping[str, Any], key: str | None) -> tuple[State, str, list[str]]:
    """Tensors of the dictionary that is meant, its key, and what lies beside them and is no tensor."""
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
        return top, key, sorted(loaded.keys() - top.keys() - inner.keys()) if top else []
    if key not in inner:
        raise UsageError(
            f"{source} holds no state dictionary {key!r}{did_you_mean(key, inner)}; "
            f"it holds {few(inner) or 'none'}"
        )
    return {str(name): value for name, value in inner[key].items()}, key, []


def _names(spec: ModelSpec, found: State, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Names that a file may have, and ours: our own, or where none of those is there, the package's."""
    assert spec.family is not None  # a published graph has no weights that could be read
    elsewhere = get_family(spec.family).elsewhere
    if elsewhere is None or any(name.endswith(tuple(wanted)) for name in found):
        return {name: name for name in wanted}
    return {elsewhere(name, spec): name for name in wanted}


def _prefix(source: Path, found: State, wanted: Mapping[str, Any], given: str | None) -> str:
    """What the names of the weights begin with: as given, or where it is beyond doubt."""
    if given is not None:
        prefix = given if given.endswith(".") or not given else f"{given}."
        if not any(name.startswith(prefix) for name in found):
            raise UsageError(f"{source} holds no name that begins with {prefix!r}; it holds {few(found)}")
        return prefix
    counts = Counter(
        name[:start]
        for name in found
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[start:] in wanted
    )
    whole = sorted(prefix for prefix, count in counts.items() if count == len(wanted))
    if len(whole) > 1:
        raise UsageError(
            f"{source} holds these weights {len(whole)} times, under {few(map(repr, whole))}: "
            "choose with --prefix"
        )
    prefix = whole[0] if whole else ""
    others = [name for name in found if not name.startswith(prefix)]
    if others:
        raise UsageError(
            f"{source} holds these weights under {prefix!r} and {len(others)} other names ({few(others)}): "
            f"take those alone with --prefix {prefix}"
        )
    return prefix


def _check_fit(
    source: Path, family: str, weights: State, wanted: Mapping[str, tuple[int, ...]], prefix: str
) -> None:
    """Compare names and shapes; one error names every kind of misfit."""
    missing = [name for name in wanted if name not in weights]
    unexpected = [prefix + name for name in weights if name not in wanted]
    shapes = [
        f"{prefix}{name} is {list(value.shape)}, the network's {list(wanted[name])}"
        for name, value in weights.items()
        if name in wanted and tuple(value.shape) != wanted[name]
    ]
    misfits = [
        f"{len(names)} {what} ({few(names, between)})"
        for what, names, between in (
            ("missing", missing, ", "),
            ("of another shape", shapes, "; "),
            ("unexpected", unexpected, ", "),
        )
        if names
    ]
    if misfits:
        raise BundleError(
            f"{source} does not fit {family}: of {len(wanted)} weights {', '.join(misfits)}: "
            "see to --hyper, --stems, --prefix and --drop"
        )


def _array(source: Path, name: str, value: Tensor) -> NDArray[Any]:
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
    return between.join(every[:SHOWN]) + (f" and {more} more" if more > 0 else "")
