"""An ensemble: a bundle of bundles, and how their results become one.

ensemble.tfx/
  manifest.json        the rule, the weights, and of each member its folder and digest
  1-demo.tfx/          a bundle, whole: what later stages add to it goes there
  2-second.tfx/
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from tfswa.runtime.model.opening import BundleModel, Model, trust_code


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


def is_ensemble(path: str | Path) -> bool:
    """Whether there is one; a manifest that is damaged is none."""
    try:
        return (Path(path) / MANIFEST).is_file() and MEMBERS in read_manifest(Path(path))
    except BundleError:
        return False


def open_ensemble(path: str | Path, *, trusted: bool = False) -> Ensemble:
    """Open an ensemble and its members.

    Args:
        path: its directory.
        trusted: run machine code in the members, and from now on, though this machine did not make it.

    Raises:
        BundleError: it is damaged, or a member is not the one that was put in.
    """
    manifest = read_manifest(Path(path))
    try:
        said = [(str(one["folder"]), str(one["digest"])) for one in manifest[MEMBERS]]
        weights = {str(stem): tuple(map(float, row)) for stem, row in manifest["weights"].items()}
        combine = str(manifest["combine"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path}: what it says of its members is damaged ({error})") from error
    if not said or not all(math.isfinite(weight) for row in weights.values() for weight in row):
        raise BundleError(f"{path} names no member, or a weight that is no number: make it again")
    members = tuple(_member(Path(path), str(path), folder, digest) for folder, digest in said)
    if trusted:
        for member in members:
            trust_code(member)
    return Ensemble(str(path), Path(path), combine, weights, members)


def member_names(name: str) -> tuple[str, ...]:
    """Of an ensemble its members, each by the name that opens it; of anything else the name alone.

    Raises:
        BundleError: see ``open_ensemble``.
    """
    return tuple(member.name for member in open_ensemble(name).members) if is_ensemble(name) else (name,)


def _member(path: Path, name: str, folder: str, digest: str) -> BundleModel:
    if Path(folder).name != folder or folder in ("", ".", ".."):
        raise BundleError(f"{path / MANIFEST} lists {folder!r}, which is not in the ensemble: do not use it")
    bundle = Bundle.open(path / folder)
    if bundle.digest != digest:
        raise BundleError(
            f"{path / folder} is another model than the one that was put in: its digest is "
            f"{bundle.digest[:12]}, the ensemble says {digest[:12]}: make the ensemble again"
        )
    return BundleModel(f"{name}/{folder}", bundle)


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
    bundles = [_bundle(member) for member in members]
    with replacing_directory(path, force=force) as work:
        said: list[dict[str, Any]] = []
        for number, (member, bundle) in enumerate(zip(members, bundles, strict=True), 1):
            folder = f"{number}-{Path(member.name).stem}.tfx"
            bundle.copy_into(work / folder)
            said.append({"folder": folder, "digest": bundle.digest})
        rule = {"combine": combine, "weights": {stem: list(row) for stem, row in weights.items()}}
        write_manifest(work, {MEMBERS: said, **rule}, {})
    return open_ensemble(path)


def _bundle(member: Model) -> Bundle:
    if member.bundle is None:
        raise UsageError(
            f"{member.name} is an exported file, an ensemble holds bundles: name that it came from"
        )
    return member.bundle
