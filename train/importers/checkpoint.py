"""Weights of a file as a bundle: which of them they are, of which network, and whether they fit.

Of a network of the user's own the family is said. A published one is known by its names and shapes, see
``kinds.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfswa.runtime.errors import BundleError, ConfigError, OutputExists, UsageError, reason
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.table import text_table
from tfswa.train.config import ModelConfig
from tfswa.train.config_files import find_config, load_config, load_run_config
from tfswa.train.families import build_network, get_family, new_spec
from tfswa.train.importers.kinds import Kind, Settings, recognized, spec_of_reading, with_known
from tfswa.train.importers.published import read_yaml
from tfswa.train.importers.reading import State, array_of, chosen, few, read_weights, uncompiled_name
from tfswa.train.strict import config_from_dict, parse_overrides

CLOSE = 1e-2  # of constants that a file may hold in half precision
NEAR_ZERO = 1e-6  # of the largest of them: what is smaller is rounding, such as the ends of a window
ROWS = 5  # of each kind in a table of misfits


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


class Misfit(BundleError):
    """Weights that are not those of the network.

    Attributes:
        table: the first misfits of each kind, and what else is meant where that is likely.
    """

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


def import_checkpoint(
    source: Path,
    of: ModelSpec | Settings,
    output: Path,
    *,
    key: str | None = None,
    prefix: str | None = None,
    drop: Sequence[str] = (),
    precision: str = "fp32",
    provenance: Mapping[str, Any] | None = None,
    force: bool = False,
) -> tuple[Bundle, Picked]:
    """Make a bundle of a state dictionary.

    Args:
        source: a file of torch or of safetensors.
        of: the model that the weights are of; or what is known about a published one beside its weights.
        output: the bundle.
        key: of the dictionary within a file of torch; None: the only one there is.
        prefix: beginning of the names of the weights; names that begin otherwise are left out. None: none, or
            the one that all names begin with.
        drop: beginnings of names that are left out.
        precision: how weights are stored, ``fp32`` or ``fp16``.
        provenance: what else is known of where they come from.
        force: replace an existing bundle.

    Raises:
        OutputExists: the bundle is there and ``force`` is False.
        UsageError: the file cannot be opened, or ``key`` or ``prefix`` is not in it, or more than one could
            be meant; or something about a published network has to be said.
        BundleError: the file is damaged, wants to run code, or is of no network that is known here.
        Misfit: its weights do not fit.
    """
    if output.exists() and not force:  # before anything is read
        raise OutputExists(f"{output} is there already: replace it with --force, or choose another name")
    digest = _digest(source)
    loaded, said = read_weights(source)
    if isinstance(of, Settings):
        of.config = _joined(said, of.config)
    found, key, others = chosen(source, loaded, key)
    kept = _without(drop, found)
    match = _matched(source, of, kept, prefix, digest)
    left_out = sorted({*found.keys() - match.used, *others})
    bundle = Bundle.create(
        output,
        match.spec,
        {name: array_of(source, name, value) for name, value in match.weights.items()},
        provenance={
            "command": "tfx import",
            "checkpoint": source.name,
            "checkpoint_sha256": digest,
            "key": key,
            "prefix": match.prefix,
            **match.origin,
            **(provenance or {}),
        },
        precision=precision,
        force=force,
    )
    return bundle, Picked(match.weights, key, match.prefix, tuple(left_out))


def import_targets(
    sources: Mapping[str, Path],
    of: Settings,
    output: Path,
    *,
    name: str,
    precision: str = "fp32",
    provenance: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Bundle:
    """Make one bundle of networks of one stem each, which lie in a file each.

    Args:
        sources: the file of each stem, in order.
        of: what is known of them beside their weights.
        output: the bundle.
        name: what messages call all of them together.
        precision: how weights are stored, ``fp32`` or ``fp16``.
        provenance: what else is known of where they come from.
        force: replace an existing bundle.

    Raises:
        OutputExists, UsageError, BundleError, Misfit: as of ``import_checkpoint``.
    """
    every: State = {}
    digests: dict[str, str] = {}
    for stem, source in sources.items():
        digests[source.name] = _digest(source)
        found, _, _ = chosen(source, read_weights(source)[0], None)
        every.update((f"{stem}.{own}", value) for own, value in found.items())
    match = _matched(Path(name), of, every, "", None)
    return Bundle.create(
        output,
        match.spec,
        {ours: array_of(Path(name), ours, value) for ours, value in match.weights.items()},
        provenance={
            "command": "tfx import",
            "checkpoints_sha256": digests,
            **match.origin,
            **(provenance or {}),
        },
        precision=precision,
        force=force,
    )


def _joined(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself, and before it, value by value, what is said beside it."""
    every = {**said, **config}
    for name in said.keys() & config.keys():
        if isinstance(said[name], Mapping) and isinstance(config[name], Mapping):
            every[name] = {**said[name], **config[name]}
    return every


def _digest(source: Path) -> str:
    try:
        return sha256_of(source)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {reason(error)}") from error


@dataclass(frozen=True)
class _Match:
    """Weights of a file by the names of the network that they fit, and which of the file's they are."""

    spec: ModelSpec
    weights: State
    prefix: str
    used: set[str]
    origin: Mapping[str, Any]


def _matched(
    source: Path, of: ModelSpec | Settings, kept: State, prefix: str | None, digest: str | None
) -> _Match:
    """The weights that are meant, of the network that they are of; see ``import_checkpoint``."""
    origin: dict[str, Any] = {}
    if isinstance(of, Settings):
        origin = {} if digest is None else with_known(of, digest)
        kind, prefix = _kind_of(source, kept, prefix)
        weights = _under(prefix, kept)
        spec, ours = _published(source, kind, weights, of)
        origin["kind"] = kind.name
    else:
        spec = of
        ours = _names(spec, kept, shapes_of(spec))
        prefix = _prefix(source, kept, ours, prefix)
        weights = _under(prefix, kept)
    sizes = shapes_of(spec)
    _check_fit(
        source, spec.family_in_words, weights, {theirs: sizes[name] for theirs, name in ours.items()}, prefix
    )
    used = {prefix + name for name in weights}
    return _Match(spec, {ours[name]: value for name, value in weights.items()}, prefix, used, origin)


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


def settings_of(
    config: Path | None,
    *,
    stems: tuple[str, ...] | None = None,
    hyper: Sequence[str] = (),
    stft: Sequence[str] = (),
    chunk: Sequence[str] = (),
    license_: str | None = None,
) -> Settings:
    """What is known of a published network beside its weights.

    Args:
        config: its published configuration, YAML.
        stems: in order.
        hyper: hyper-parameters, ``key=value`` in TOML, as are ``stft`` and ``chunk``.
        stft: of the transform.
        chunk: of the chunks.
        license_: of the weights.

    Raises:
        UsageError: the configuration cannot be read, or an option is no ``key=value``.
    """
    return Settings(
        {} if config is None else read_yaml(config),
        stems,
        hyper=parse_overrides(hyper),
        stft=parse_overrides(stft),
        chunk=parse_overrides(chunk),
        license=license_,
    )


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's weights by name; no memory is taken for them."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_network(spec).state_dict().items()}


def _without(drop: Sequence[str], found: State) -> State:
    """The tensors whose names begin otherwise."""
    beginnings = tuple(map(uncompiled_name, drop))
    return {name: value for name, value in found.items() if not name.startswith(beginnings)}


def _under(prefix: str, kept: State) -> State:
    """The tensors whose names begin so, without that."""
    return {name[len(prefix) :]: value for name, value in kept.items() if name.startswith(prefix)}


def _kind_of(source: Path, kept: State, prefix: str | None) -> tuple[Kind, str]:
    """Of which published network the weights are, and what they lie in."""
    given = "" if prefix is None else _prefix(source, kept, {}, prefix)
    found = recognized([name[len(given) :] for name in kept if name.startswith(given)])
    if found is None:
        raise UsageError(
            f"{source} holds weights of no published network that is known here ({few(kept)}): name the "
            "network's --family, or its training --config"
        )
    return found[0], given + found[1]


def _published(
    source: Path, kind: Kind, weights: State, settings: Settings
) -> tuple[ModelSpec, dict[str, str]]:
    """The contract, and the file's names with the network's; what no network has a use for is taken out."""
    for pattern, what in kind.beyond.items():
        for name in weights:
            if re.match(pattern, name):
                raise BundleError(f"{source} is a {kind.name} with {what} ({name}), which is not known here")
    try:
        reading = kind.read({name: tuple(value.shape) for name, value in weights.items()}, settings)
    except BundleError as error:
        raise BundleError(f"{source}: {error}") from error
    spec = spec_of_reading(kind, str(source), reading, settings)
    for pattern, right in reading.constants.items():
        for name in [name for name in weights if re.fullmatch(pattern, name)]:
            held = weights.pop(name)
            if tuple(held.shape) != right.shape:  # before numbers are made of as many as a name may claim
                raise BundleError(
                    f"{source}: {name} is {list(held.shape)}, in a {kind.name} as it is known here "
                    f"{list(right.shape)}: it is another network"
                )
            value = np.asarray(array_of(source, name, held), np.float32)
            if not np.allclose(value, right, rtol=CLOSE, atol=NEAR_ZERO * np.abs(right).max()):
                raise BundleError(
                    f"{source}: {name} is {few(map(str, value.flat))}, in a {kind.name} as it is known here "
                    f"{few(map(str, right.flat))}: it is another network"
                )
    sizes = shapes_of(spec)
    theirs: dict[str, str] = {}
    for name in list(weights):
        ours = reading.rename(name)
        first = theirs.setdefault(ours, name)
        if first != name and not _same(source, (first, name), weights, sizes.get(ours)):
            raise BundleError(
                f"{source}: {first} and {name} are one weight of a {kind.name}, and differ: it is damaged"
            )
    return spec, {theirs.get(name, name): name for name in sizes}


def _same(source: Path, names: tuple[str, str], weights: State, shape: Sequence[int] | None) -> bool:
    """Whether two names hold one weight, of which the second is taken out.

    Of a weight that does not fit the first says so; it may claim more numbers than can be compared.
    """
    one, other = weights[names[0]], weights.pop(names[1])
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if shape is None or tuple(one.shape) != tuple(shape):
        return True
    first, second = array_of(source, names[0], one), array_of(source, names[1], other)
    return np.array_equal(first, second)


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
        prefix = uncompiled_name(given if given.endswith(".") or not given else f"{given}.")
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
    """Compare names and shapes; one error names every kind of misfit, and a table the likely meanings."""
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    other = [name for name, value in weights.items() if wanted.get(name, value.shape) != tuple(value.shape)]
    shapes = [
        f"{prefix}{name} is {list(weights[name].shape)}, the network's {list(wanted[name])}" for name in other
    ]
    misfits = [
        f"{len(names)} {what} ({few(names, between)})"
        for what, names, between in (
            ("missing", missing, ", "),
            ("of another shape", shapes, "; "),
            ("unexpected", [prefix + name for name in unexpected], ", "),
        )
        if names
    ]
    if not misfits:
        return
    rows: list[tuple[str | None, ...]] = [
        ("missing", name, None, str(list(wanted[name])), _nearest(name, unexpected))
        for name in missing[:ROWS]
    ]
    rows += [
        ("another shape", prefix + name, str(list(weights[name].shape)), str(list(wanted[name])), None)
        for name in other[:ROWS]
    ]
    rows += [
        ("unexpected", prefix + name, str(list(weights[name].shape)), None, _nearest(name, missing))
        for name in unexpected[:ROWS]
    ]
    raise Misfit(
        f"{source} does not fit {family}: of {len(wanted)} weights {', '.join(misfits)}: "
        "see to --config, --hyper, --stems, --prefix and --drop",
        text_table(("misfit", "name", "in the file", "in the network", "nearest"), rows),
    )


def _nearest(name: str, among: Sequence[str]) -> str | None:
    """The name that is most like it, where one is."""
    close = get_close_matches(name, among, n=1)
    return close[0] if close else None
