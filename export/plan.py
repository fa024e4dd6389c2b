"""What an artifact is computed in: precisions by name, and the plan of a network's exceptions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.errors import ConfigError

Precision = Literal["fp32", "fp16", "bf16", "int8", "mixed"]
Low = Literal["fp16", "bf16"]

# What lies between the ends of a typed graph; in a mixed one, that which is not quantized.
TYPED: dict[str, Low] = {"fp16": "fp16", "bf16": "bf16", "mixed": "fp16"}
QUANTIZED = ("int8", "mixed")


@dataclass(frozen=True)
class PrecisionPlan:
    """Which layers of a graph are exceptions to its precision.

    Names are those of modules, or of operators of modules: ``encoder.1.blocks.0.time`` is all of one
    attention, ``encoder.1.blocks.0.time/Softmax`` its softmax.

    Attributes:
        fp32: what a graph of low precision computes in float32 all the same.
        int8: whose layers a quantized graph computes in 8 bits; None for all that can be, but for ``fp32``.
        source: digest of the weights that the plan was made for; None where nobody says.
    """

    fp32: tuple[str, ...] = ()
    int8: tuple[str, ...] | None = None
    source: str | None = None

    @classmethod
    def load(cls, path: Path) -> PrecisionPlan:
        """Read a plan: ``{"fp32": ["encoder.1.blocks.0.time", ...], "int8": [...], "source": "..."}``.

        What `tfx calibrate --sensitivity` found of each group may stand beside, under ``measured``.

        Raises:
            ConfigError: it cannot be read, or holds something else.
        """
        try:
            data = parse_json(read_document(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"precision plan {path} cannot be read: {error}") from error
        if not isinstance(data, dict) or not {"fp32", "int8"} & set(data):
            raise ConfigError(f'precision plan {path} lists no names: write {{"fp32": ["module", ...]}}')
        for key in ("fp32", "int8"):
            names = data.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
                raise ConfigError(f'precision plan {path}: {key} lists no names: write ["module", ...]')
        if unknown := set(data) - {"fp32", "int8", "source", "measured"}:
            raise ConfigError(
                f"precision plan {path} has unknown keys {sorted(unknown)}: it knows fp32, int8, source"
            )
        if not isinstance(data.get("source"), str | None):
            raise ConfigError(f"precision plan {path}: source is {data['source']!r:.40}, not a digest")
        quantized = tuple(data["int8"]) if "int8" in data else None
        return cls(tuple(data.get("fp32", ())), quantized, data.get("source"))

    def keeps(self, name: str) -> bool:
        """Whether a node of this name is computed in float32."""
        return any(_names(entry, name) for entry in self.fp32)

    def quantizes(self, name: str) -> bool:
        """Whether a layer of this name is computed in 8 bits, where the graph is quantized."""
        if self.int8 is None:
            return not self.keeps(name)
        return any(_names(entry, name) for entry in self.int8)

    def check(self, source: str, names: Iterable[str]) -> None:
        """See that the plan is of these weights, and of this graph.

        Args:
            source: the weights' digest.
            names: of the graph's nodes.

        Raises:
            ConfigError: it was made for other weights, or names something that is not in the graph.
        """
        if self.source not in (None, source):
            raise ConfigError(
                f"the precision plan was made for the weights {self.source:.12}, these are {source:.12}: "
                "make one with `tfx calibrate --sensitivity`"
            )
        there = list(names)
        for kind, entries in (("float32", self.fp32), ("int8", self.int8 or ())):
            for entry in entries:
                if not any(_names(entry, name) for name in there):
                    raise ConfigError(
                        f"the precision plan has {entry} in {kind}, the graph has no node of that name: "
                        "names are those of the network's modules"
                    )


def _names(entry: str, name: str) -> bool:
    """Whether a plan's entry means a node: ``encoder.1`` all of a module, ``encoder.1/Conv`` some of it."""
    return name == entry or name.startswith((f"{entry}_",) if "/" in entry else (f"{entry}/", f"{entry}."))
