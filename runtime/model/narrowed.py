"""Bundles inside a bundle, of networks that give some of its stems alone.

    model.tfx/
      only/vocals.tfx/     a bundle, whole: what later stages make of it goes there

``tfx export --stems vocals`` makes one; ``tfx separate --stems vocals`` takes it in place of the whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfswa.runtime.errors import BundleError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, Model

FOLDER = "only"
ARTIFACTS = ("onnx", "torchscript", "aotinductor")
PART_OF = "part_of"  # in the provenance of such a bundle: the digest of the one that it was made of

logger = logging.getLogger(__name__)


def place_of(bundle: Bundle, stems: Sequence[str]) -> Path:
    """Where the bundle of these stems alone is, or is to be put."""
    return bundle.home / FOLDER / f"{'+'.join(stems)}.tfx"


def narrowed(model: Model, stems: Sequence[str]) -> BundleModel | None:
    """The one with the fewest stems among those that have all of these; None where there is none.

    One from which nothing was exported, because that was refused, does not count.
    """
    if model.bundle is None:
        return None
    fitting = [
        one
        for one in all_narrowed(model.bundle, model.name)
        if set(stems) <= set(one.spec.stems) and any(map(one.bundle.find, ARTIFACTS))
    ]
    return min(fitting, key=lambda one: len(one.spec.stems), default=None)


def all_narrowed(bundle: Bundle, name: str) -> Iterator[BundleModel]:
    """All that a bundle of this name holds, by the names that open them.

    One that is damaged, or was made of what the model was before, is left out with a warning.
    """
    for path in sorted((bundle.home / FOLDER).glob("*.tfx")):
        inside = str(path) if bundle.sealed else f"{name}/{FOLDER}/{path.name}"
        try:
            found = Bundle.open(path)
        except BundleError as error:
            logger.warning("%s is left out: %s", inside, error)
            continue
        if found.provenance.get(PART_OF) == bundle.digest:
            yield BundleModel(inside, found)
        else:
            logger.warning("%s is left out, it was made of another model: make it again", inside)


def copy_narrowed(bundle: Bundle, folder: Path) -> None:
    """Copy them into a copy of the bundle that nobody sees yet.

    Raises:
        BundleError: a file of one of them is damaged.
    """
    for one in all_narrowed(bundle, str(bundle.path)):
        one.bundle.copy_into(folder / FOLDER / one.bundle.path.name)
