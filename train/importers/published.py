"""Published configurations: YAML as the field's training suites write it, read as data.

audio:      {chunk_size: 352800, sample_rate: 44100, ...}
model:      {dim: 384, ..., stft_hop_length: 441}
training:   {instruments: [vocals, other], target_instrument: vocals, ...}
inference:  {num_overlap: 4, ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfswa.runtime.errors import BackendUnavailable, ConfigError, UsageError, reason
from tfswa.train.importers.values import check_nodes, check_scalar

MAX_BYTES = 1 << 20  # those that are published have 2 to 5 KiB
SUFFIXES = (".yaml", ".yml")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration: plain values, lists and tables, and tuples by the tag that Python gives them.

    Raises:
        UsageError: it cannot be opened.
        ConfigError: it is no such file: damaged, too long or deep, with a tag that asks for code, or no
            table.
        BackendUnavailable: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise BackendUnavailable(
            f"{path} is YAML, and PyYAML is not installed: pip install 'tfswa[train]'"
        ) from None
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_BYTES} bytes, a configuration is not: see what it is")
    try:
        loader = _loader(yaml)(content)  # a safe one that knows tuples too
        try:
            node = loader.get_single_node()
            check_nodes(node)  # before anything is built of it: merges write aliases out
            found = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except Exception as error:  # what PyYAML lets through where a tag does not fit has no common base
        raise ConfigError(f"{path} is no YAML that is read here: {_why(error)}") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} holds a {type(found).__name__}: a configuration is a table")
    return {str(name): value for name, value in found.items()}


def _loader(yaml: Any) -> Any:
    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A class of its own: a constructor that is added to PyYAML's would be everybody's."""

    def as_tuple(loader: Any, node: Any) -> tuple[Any, ...]:
        return tuple(loader.construct_sequence(node, deep=True))

    def as_integer(loader: Any, node: Any) -> int:
        value: int = loader.construct_yaml_int(node)
        check_scalar(value)
        return value

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", as_tuple)
    Loader.add_constructor("tag:yaml.org,2002:int", as_integer)
    return Loader


def _why(error: BaseException) -> str:
    """A parser's complaint in one line, with its place."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem is None:
        return reason(error)
    return str(problem) if mark is None else f"{problem}, in line {mark.line + 1}"
