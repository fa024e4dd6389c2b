"""Bundles inside a bundle, of networks that give some of its stems alone.

    model.tfx/
      only/vocals.tfx/     a bundle, whole: what later stages make of it goes there

``tfx export --stems vocals`` makes one; ``tfx separate --stems vocals`` takes it in place of the whole.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tfswa.runtime.errors import BundleError
from tfswa.runtime.files import caches
from tfswa.runtime.files.own_folders import link_in
from tfswa.runtime.model.bundle import ONLY, Bundle
from tfswa.runtime.model.opening import BundleModel, Model

ARTIFACTS = ("onnx", "torchscript", "aotinductor")
PART_OF = "part_of"  # in the provenance of such a bundle: the digest of the one that it was made of

logger = logging.getLogger(__name__)


def place_of(bundle: Bundle, stems: Sequence[str]) -> Path:
    """Where the bundle of these stems alone is, or is to be put."""
    return bundle.home / ONLY / f"{'+'.join(stems)}.tfx"


def narrowed(
    model: Model, stems: Sequence[str], may: Callable[[BundleModel], bool] = lambda _: True
) -> BundleModel | None:
    """The one with the fewest stems among those that have all of these; None where there is none.

    One from which nothing was exported, because that was refused, does not count.

    Args:
        model: that holds it.
        stems: these.
        may: what else is asked of it.
    """
    if model.bundle is None:
        return None
    if model.bundle.sealed:
        caches.touch(model.bundle.home)
    fitting = [
        one
        for one in all_narrowed(model.bundle)
        if set(stems) <= set(one.spec.stems) and any(map(one.bundle.find, ARTIFACTS)) and may(one)
    ]
    return min(fitting, key=lambda one: len(one.spec.stems), default=None)


def all_narrowed(bundle: Bundle) -> Iterator[BundleModel]:
    """All that a bundle holds.

    One that is damaged, or was made of what the model was before, is left out with a warning.
    """
    for path in sorted((bundle.home / ONLY).glob("*.tfx")):
        try:
            if problem := link_in(path, None if bundle.sealed else bundle.path):
                raise BundleError(problem)
            found = Bundle.open(path)
        except BundleError as error:
            logger.warning("%s is left out: %s", path, error)
            continue
        if found.provenance.get(PART_OF) == bundle.digest:
            yield BundleModel(str(path), found)
        else:
            logger.warning("%s is left out, it was made of another model: make it again", path)


def copy_narrowed(bundle: Bundle, folder: Path) -> None:
    """Copy them into a copy of the bundle that nobody sees yet; a damaged one is left out with a warning."""
    for one in all_narrowed(bundle):
        place = folder / ONLY / one.bundle.path.name
        try:
            one.bundle.copy_into(place)
        except BundleError as error:
            logger.warning("%s is left out: %s", one.name, error)
            shutil.rmtree(place)
            with suppress(OSError):  # another one is there
                place.parent.rmdir()
