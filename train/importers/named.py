"""``tfx import NAME``: a model of the list of known ones, fetched when it is asked for, as a bundle.

Where a model is several files, each is a network of all stems, and they become an ensemble; or each is a
network of one stem, and they become one bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tfswa.runtime.errors import BundleError, OutputExists
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.ensemble import Ensemble, new_ensemble
from tfswa.runtime.model.known import KnownModel, known_model
from tfswa.runtime.model.opening import named_model
from tfswa.train.importers.checkpoint import import_checkpoint, import_targets
from tfswa.train.importers.download import Report, fetch_known
from tfswa.train.importers.kinds import origin, settings_of_known
from tfswa.train.importers.mdx_net import import_mdx_net

PARTS = frozenset(("value_residual", "skip_connection"))  # of those that not all networks of a kind have


def import_known(
    name: str,
    output: Path | None = None,
    *,
    files: Sequence[Path] = (),
    mirror: str | None = None,
    precision: str = "fp32",
    force: bool = False,
    report: Report = lambda count: None,
) -> Bundle | Ensemble:
    """Make a bundle of a known model, or an ensemble; whole or not at all.

    Args:
        name: of the list.
        output: where it goes; default: the user's cache, under its name.
        files: what would be fetched, where it is here already; see ``fetch_known``.
        mirror: see ``Download.fetch``.
        precision: how weights are stored, ``fp32`` or ``fp16``.
        force: replace an existing bundle.
        report: called with the number of bytes that have been fetched.

    Raises:
        UsageError: no such name, or ``files`` that are not its.
        OutputExists: the bundle is there and ``force`` is False.
        BundleError: it has a part that is not known here, a file is another one, or weights do not fit.
        TfxError: it could not be fetched.
    """
    entry = known_model(name)
    _check_importable(entry)
    path = output or named_model(entry.name)
    if path.exists() and not force:  # before anything is fetched
        raise OutputExists(f"{path} is there already: replace it with --force, or choose another name")
    sources = fetch_known(entry, files=files, mirror=mirror, report=report)
    how: dict[str, Any] = {"precision": precision, "provenance": origin(entry), "force": force}
    if len(sources) == 1:
        return _import_one(entry, sources[0], path, **how)
    if entry.bag is None:
        stems = dict(zip(entry.stems, sources, strict=True))
        return import_targets(stems, settings_of_known(entry), path, name=entry.name, **how)
    how["force"] = False  # members are new
    members = [
        (file.stem or source.stem, partial(_import_one, entry, source, **how))
        for file, source in zip(entry.files, sources, strict=True)
    ]
    return new_ensemble(path, members, combine="mean", weights=entry.bag, force=force)


def _import_one(
    entry: KnownModel, source: Path, path: Path, *, precision: str, provenance: dict[str, Any], force: bool
) -> Bundle:
    """A bundle of one file, a network by itself."""
    if source.suffix == ".onnx":
        audio, model = (entry.config.get(section, {}) for section in ("audio", "model"))
        return import_mdx_net(
            source,
            path,
            stft=[f"n_fft={audio['n_fft']}"],
            stems=[*entry.stems, *([entry.complement] if entry.complement else [])],
            compensate=model.get("compensate"),
            license_=entry.license,
            provenance=provenance,
            force=force,
        )
    bundle, _ = import_checkpoint(
        source, settings_of_known(entry), path, precision=precision, provenance=provenance, force=force
    )
    return bundle


def size_of(name: str) -> int | None:
    """Bytes of all files of a known model; None where one of them is not known.

    Raises:
        UsageError: no such name.
    """
    megabytes = known_model(name).size_mb
    return None if megabytes is None else round(megabytes * 1e6)


def _check_importable(entry: KnownModel) -> None:
    """Refuse before hundreds of megabytes are fetched.

    Raises:
        BundleError: it has a part that no network here has.
    """
    strange = [part for part in entry.extras if part not in PARTS]
    if strange:
        raise BundleError(
            f"{entry.name} has {', '.join(strange)}, which is not known here: only plain networks of its "
            "kind can be imported"
        )
