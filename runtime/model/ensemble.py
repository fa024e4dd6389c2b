"""An ensemble: a bundle of bundles, and how their results become one.

ensemble.tfx/
  manifest.json        the rule, the weights, and of each member its folder and digest
  1-demo.tfx/          a bundle, whole: what later stages add to it goes there
  2-second.tfx/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfswa.runtime.errors import BundleError, UsageError
from tfswa.runtime.model.bundle import (
    MANIFEST,
    MEMBERS,
    Bundle,
    read_manifest,
    replacing_directory,
    write_manifest,
)
from tfswa.runtime.model.narrowed import copy_narrowed
from tfswa.runtime.model.opening import BundleModel, Model, model_names, trust_code


@dataclass(frozen=True)
class Ensemble:
    """An open ensemble.

    Attributes:
        name: what the user typed.
        path: its directory.
        combine: the rule, by name.
        weights: by stem, one number a member; those of all other stems under ``""``.
        members: its bundles, in order.
    """

    name: str
    path: Path
    combine: str
    weights: Mapping[str, tuple[float, ...]]
    members: tuple[BundleModel, ...]


def is_ensemble(name: str | Path) -> bool:
    """Whether a path, or a name, is of one; a manifest that is damaged is none."""
    path = _place(name)
    try:
        return (path / MANIFEST).is_file() and MEMBERS in read_manifest(path)
    except BundleError:
        return False


def open_ensemble(name: str | Path, *, trusted: bool = False) -> Ensemble:
    """Open an ensemble and its members.

    Args:
        name: its directory, or the name that it was given.
        trusted: run machine code in the members, and from now on, though this machine did not make it.

    Raises:
        BundleError: it is damaged, or a member is not the one that was put in.
    """
    path = _place(name)
    manifest = read_manifest(path)
    try:
        said = [(str(one["folder"]), str(one["digest"])) for one in manifest[MEMBERS]]
        weights = {str(stem): tuple(map(float, row)) for stem, row in manifest["weights"].items()}
        combine = str(manifest["combine"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path}: what it says of its members is damaged ({error})") from error
    if not said or not all(math.isfinite(weight) for row in weights.values() for weight in row):
        raise BundleError(f"{path} names no member, or a weight that is no number: make it again")
    members = tuple(_member(path, folder, digest) for folder, digest in said)
    if trusted:
        for member in members:
            trust_code(member)
    return Ensemble(str(name), path, combine, weights, members)


def _place(name: str | Path) -> Path:
    """Where a model of that path or name is: what is there goes before what has the name."""
    path = Path(name)
    return path if path.exists() else model_names().get(str(name), path)


def member_names(name: str) -> tuple[str, ...]:
    """Of an ensemble its members, each by the name that opens it; of anything else the name alone.

    Raises:
        BundleError: see ``open_ensemble``.
    """
    return tuple(member.name for member in open_ensemble(name).members) if is_ensemble(name) else (name,)


def _member(path: Path, folder: str, digest: str) -> BundleModel:
    if Path(folder).name != folder or folder in ("", ".", ".."):
        raise BundleError(f"{path / MANIFEST} lists {folder!r}, which is not in the ensemble: do not use it")
    bundle = Bundle.open(path / folder)
    if bundle.digest != digest:
        raise BundleError(
            f"{path / folder} is another model than the one that was put in: its digest is "
            f"{bundle.digest[:12]}, the ensemble says {digest[:12]}: make the ensemble again"
        )
    return BundleModel(f"{path}/{folder}", bundle)


def write_ensemble(
    path: Path,
    members: Sequence[Model],
    *,
    combine: str,
    weights: Mapping[str, Sequence[float]],
    force: bool = False,
) -> Ensemble:
    """Write an ensemble, whole or not at all; members are copied.

    Args:
        path: its directory; must not exist unless ``force``.
        members: bundles, in order.
        combine: the rule, by name.
        weights: by stem, one number a member; those of all other stems under ``""``.
        force: replace a bundle or an ensemble that is there.

    Raises:
        UsageError: a member is an exported file; or see ``Bundle.create``.
        BundleError: a file of a member is damaged.
    """
    made = [(Path(member.name).stem, _copier(member)) for member in members]
    return new_ensemble(path, made, combine=combine, weights=weights, force=force)


def new_ensemble(
    path: Path,
    members: Sequence[tuple[str, Callable[[Path], object]]],
    *,
    combine: str,
    weights: Mapping[str, Sequence[float]],
    force: bool = False,
) -> Ensemble:
    """Write an ensemble of bundles that are made for it, whole or not at all.

    Args:
        path: its directory; must not exist unless ``force``.
        members: of each a name, and what writes a bundle at a path that it is given.
        combine: see ``write_ensemble``, as ``weights`` and ``force``.
        weights: by stem.
        force: replace what is there.

    Raises:
        OutputExists, UsageError: see ``Bundle.create``; and whatever a member's writer raises.
    """
    with replacing_directory(path, force=force) as work:
        said: list[dict[str, Any]] = []
        for number, (name, write) in enumerate(members, 1):
            folder = f"{number}-{name}.tfx"
            write(work / folder)
            said.append({"folder": folder, "digest": Bundle.open(work / folder).digest})
        rule = {"combine": combine, "weights": {stem: list(row) for stem, row in weights.items()}}
        write_manifest(work, {MEMBERS: said, **rule}, {})
    return open_ensemble(path)


def _copier(member: Model) -> Callable[[Path], object]:
    """What writes a copy of a member; that it can be written is looked at now."""
    if member.bundle is None:
        raise UsageError(
            f"{member.name} is an exported file, an ensemble holds bundles: name that it came from"
        )
    bundle = member.bundle

    def write(path: Path) -> None:
        bundle.copy_into(path)
        copy_narrowed(bundle, path)

    return write
