"""Published networks known by their weights: what a file's names and shapes say, and what is asked for.

A kind is found through the entry-point group ``tfswa.importers``, so a third party can add one. It tells by
names whether a file is its own, and reads from shapes, from a published configuration and from options what
the network is. What none of them says is asked for, all of it in one line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from numpy.typing import NDArray

from tfswa.runtime.errors import BundleError, ConfigError, UsageError
from tfswa.runtime.files.signals import load_point
from tfswa.runtime.model.known import KnownFile, KnownModel, known_by_digest
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.plugins import entry_points
from tfswa.train.families import new_spec
from tfswa.train.strict import config_from_dict

GROUP = "tfswa.importers"
NO_LICENSE = "not stated"
CHUNK_SECONDS = 8.0  # where nobody says how long
CONTEXT, FADE = 10, 20  # a chunk's frames over those that are discarded at an end, and over those of a fade
OTHER_HALF = {"vocals": "accompaniment", "accompaniment": "vocals", "instrumental": "vocals"}
WRAPPERS = ("module.", "model.", "net.", "network.", "target_models.")

Shapes = Mapping[str, Sequence[int]]
"""Of a file's tensors by name, wrappers removed."""


@dataclass
class Settings:
    """What is said beside the weights: a published configuration, and options, which go before it.

    Attributes:
        config: its sections by name, ``audio``, ``model``, ``training``, ``inference``; empty: there is none.
        stems: names of the stems, in order.
        hyper: hyper-parameters by name, which the weights cannot tell or which they are not asked about.
        stft: values of ``StftSpec`` by name.
        chunk: values of ``ChunkSpec`` by name.
        license: of the weights.
        asked: what is to be asked for: in words, and the option that says it.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    stems: tuple[str, ...] | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    stft: Mapping[str, Any] = field(default_factory=dict)
    chunk: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)

    def of(self, section: str, name: str, default: Any = None) -> Any:
        """A value of the configuration, or the default where it does not say it."""
        found = self.config.get(section)
        value = found.get(name) if isinstance(found, Mapping) else None
        return default if value is None else value

    def number(self, section: str, name: str, default: int) -> int:
        """A whole number of the configuration, above 0.

        Raises:
            ConfigError: it is something else.
        """
        value = self.of(section, name, default)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{section}.{name} {value!r} of the configuration must be an integer above 0")
        return value

    def flag(self, section: str, name: str, default: bool) -> bool:
        """True or false in the configuration.

        Raises:
            ConfigError: it is something else.
        """
        value = self.of(section, name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{section}.{name} {value!r} of the configuration must be true or false")
        return value

    def ask(self, what: str, option: str) -> None:
        """Note something that nobody said."""
        self.asked.append((what, option))

    def transform(self, **known: Any) -> StftSpec:
        """The transform: what the kind knows, after what options say.

        Raises:
            ConfigError: an unknown name, or values that contradict each other.
        """
        values = {"scale": 1.0, **known, **self.stft}
        if values.get("hop") is None:
            self.ask("the hop of the transform", "--stft hop=441")
            values["hop"] = 1
        try:
            return config_from_dict(StftSpec, values, "stft.")
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def chunks(self, stft: StftSpec, frames: int | None = None) -> ChunkSpec:
        """The chunks: as long as the configuration or the kind says, or about 8 seconds.

        Args:
            stft: the transform.
            frames: T, where the network fixes it.

        Raises:
            ConfigError: as of ``transform``.
        """
        if frames is None:
            usual = self.number("audio", "chunk_size", round(CHUNK_SECONDS * stft.sample_rate))
            frames = self.number("inference", "chunk_size", usual) // stft.hop + 1
        values = {"frames": frames, "multiple": 1, **self.chunk}
        given = values["frames"] if type(values["frames"]) is int else 0  # refused below
        values = {"context": given // CONTEXT, "fade": given // FADE, **values}
        try:
            return config_from_dict(ChunkSpec, values, "chunk.")
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def chunks_on_grid(self, stft: StftSpec, frames: int, multiple: int) -> ChunkSpec:
        """Chunks that begin at multiples of a network's strides, if options do not say otherwise.

        Args:
            stft: the transform.
            frames: T.
            multiple: what the strides make of one frame, and T is a multiple of.

        Raises:
            ConfigError: as of ``transform``.
        """
        values: dict[str, Any] = {"frames": frames, "multiple": multiple}
        shared = multiple * round((2 * (frames // CONTEXT) + frames // FADE) / multiple)
        if 0 < shared < frames:
            values |= {"context": 2 * shared // 5, "fade": shared - 1 - 2 * (2 * shared // 5)}
        return dataclasses.replace(self, chunk={**values, **self.chunk}).chunks(stft, frames)


@dataclass(frozen=True)
class Reading:
    """What a file's weights are of.

    Attributes:
        family: of the network.
        hyper: its hyper-parameters.
        stft: the transform.
        chunk: the chunks.
        channels: of the audio.
        outputs: how many stems the network gives.
        rename: from a name in the file, wrappers removed, to the network's.
        constants: values by patterns of names in the file that are no weights; a file may hold them, and
            holds no others.
        default_stems: what the kind's own package calls them, where it has one set of names.
        unseen_stem: as of ``ModelSpec``: ``""`` for the last one, None where those bins are zero.
    """

    family: str
    hyper: Mapping[str, Any]
    stft: StftSpec
    chunk: ChunkSpec
    channels: int
    outputs: int
    rename: Callable[[str], str] = str
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    default_stems: tuple[str, ...] | None = None
    unseen_stem: str | None = ""


@dataclass(frozen=True)
class Kind:
    """A network that others publish weights of.

    Attributes:
        name: as messages call it.
        marks: patterns; a file is of this kind where each of them is found at the beginning of some name.
        read: from shapes and settings to what the network is.
        beyond: patterns of names, and what of the published networks has them and is not known here.
    """

    name: str
    marks: tuple[str, ...]
    read: Callable[[Shapes, Settings], Reading]
    beyond: Mapping[str, str] = field(default_factory=dict)

    def knows(self, names: Sequence[str]) -> bool:
        """Whether weights of these names are of this kind."""
        return all(any(re.match(mark, name) for name in names) for mark in self.marks)


def kinds() -> list[Kind]:
    """All that are installed, by name."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return [cast(Kind, load_point(point)) for point in points]


def recognized(names: Sequence[str]) -> tuple[Kind, str] | None:
    """The kind of which weights of these names are, and the wrappers around them; None: of none."""
    installed = kinds()
    for prefix in _wrappers(names):
        inner = [name[len(prefix) :] for name in names if name.startswith(prefix)]
        for kind in installed:
            if kind.knows(inner):
                return kind, prefix
    return None


def _wrappers(names: Sequence[str]) -> list[str]:
    """What names begin with, of ``WRAPPERS`` in any order, the shortest first."""
    pattern = re.compile("(?:" + "|".join(map(re.escape, WRAPPERS)) + ")*")
    found = {""}
    for name in names:
        whole = cast(re.Match[str], pattern.match(name))[0]
        ends = [dot.end() for dot in re.finditer(r"\.", whole)]
        found.update(whole[:end] for end in ends)
    return sorted(found, key=len)


def settings_of_known(entry: KnownModel, file: KnownFile | None = None) -> Settings:
    """What the list of known models says of one beside its weights.

    Args:
        entry: of the list.
        file: one of its files, where it is not about all of them: where that is a network of one stem, no
            other stem is named.
    """
    config = dict(entry.config)
    if file is not None and file.stem is not None and entry.bag is None:
        config["training"] = {"instruments": [file.stem], "target_instrument": file.stem}
    return Settings(config=config, license=None if entry.license == NO_LICENSE else entry.license)


def origin(entry: KnownModel) -> dict[str, Any]:
    """What a bundle's provenance keeps of an entry of the list."""
    by = {} if entry.matched != "start" else {"known_by": "the first 8 digits of its SHA-256"}
    return {"known": entry.name, "source": entry.source, **by}


def with_known(settings: Settings, sha256: str) -> dict[str, Any]:
    """Add what the list says of a file by its hash, where no configuration and no license is given.

    Returns:
        What the provenance keeps of it; empty: it is not on the list.
    """
    entry = known_by_digest(sha256)
    if entry is None:
        return {}
    listed = settings_of_known(entry, next(file for file in entry.files if file.is_of(sha256)))
    settings.config = settings.config or listed.config
    settings.license = settings.license or listed.license
    return origin(entry)


def spec_of_reading(kind: Kind, source: str, reading: Reading, settings: Settings) -> ModelSpec:
    """The contract of a published network.

    Raises:
        UsageError: something was not said; the line names all of it, and the options that say it.
        ConfigError: values that contradict each other.
    """
    stems, outputs = _stems(reading, settings)
    if settings.asked:
        what = " and ".join(words for words, _ in settings.asked)
        options = " ".join(option for _, option in settings.asked)
        count = f"{reading.outputs} stem{'s' if reading.outputs > 1 else ''}"
        raise UsageError(
            f"{source} is a {kind.name} of {count}; its weights do not tell {what}: "
            f"add --config YAML, or {options}"
        )
    return new_spec(
        reading.family,
        stems=stems,
        channels=reading.channels,
        hyper={**reading.hyper, **settings.hyper},
        stft=reading.stft,
        chunk=reading.chunk,
        residual_stem=None if outputs == stems else stems[-1],
        network_stems=None if outputs == stems else outputs,
        unseen_stem=reading.unseen_stem,
        weights_license=settings.license or NO_LICENSE,
    )


def rest_of(stem: str) -> str:
    """What that is called which a single stem leaves of the mixture."""
    return OTHER_HALF.get(stem, f"no_{stem}")


def _stems(reading: Reading, settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All stems, and those that the network gives: one stem leaves another one of the mixture."""
    count = reading.outputs
    said = settings.stems or configured(settings, count) or reading.default_stems
    if said is None:
        example = ("vocals", "drums", "bass", "other")[:count] if count < 5 else ("A", "B", "...")
        settings.ask("the names of the stems", f"--stems {','.join(example)}")
        return ("unknown",), ("unknown",)
    if len(said) == count + 1:
        return said, said[:-1]
    if len(said) != count:
        raise UsageError(
            f"{len(said)} stems are named ({', '.join(said)}), the network gives {count}: "
            f"name {count}, or {count + 1}, of which the last is what the others leave of the mixture"
        )
    if count == 1:
        return (*said, rest_of(said[0])), said
    return said, said


def configured(settings: Settings, count: int) -> tuple[str, ...] | None:
    """Names that the configuration has, the network's first, of which there are so many."""
    every = settings.of("training", "instruments")
    target = settings.of("training", "target_instrument")
    if not isinstance(every, Sequence) or isinstance(every, str):
        every = []
    names = tuple(map(str, every))
    if target is not None and count == 1:
        others = [name for name in names if name != str(target)]
        return (str(target), *others) if len(others) == 1 else (str(target),)
    return names or None
