"""``tfx import NAME``: a model of the list of known ones, fetched when it is asked for, as a bundle."""

from __future__ import annotations

from pathlib import Path

from tfswa.runtime.errors import BundleError, OutputExists, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.known import KnownModel, known_model
from tfswa.runtime.model.opening import named_model
from tfswa.train.importers.checkpoint import import_checkpoint
from tfswa.train.importers.download import Report, fetch_known
from tfswa.train.importers.kinds import origin, settings_of_known
from tfswa.train.importers.mdx_net import import_mdx_net

PARTS = frozenset(("value_residual", "skip_connection"))  # of those that not all networks of a kind have


def import_known(
    name: str,
    output: Path | None = None,
    *,
    file: Path | None = None,
    mirror: str | None = None,
    precision: str = "fp32",
    force: bool = False,
    report: Report = lambda count: None,
) -> Bundle:
    """Make a bundle of a known model.

    Args:
        name: of the list.
        output: where it goes; default: the user's cache, under its name.
        file: what would be fetched, where it is here already.
        mirror: see ``Download.fetch``.
        precision: how weights are stored, ``fp32`` or ``fp16``.
        force: replace an existing bundle.
        report: called with the number of bytes that have been fetched.

    Raises:
        UsageError: no such name, or a model that cannot be imported yet.
        OutputExists: the bundle is there and ``force`` is False.
        BundleError: the file is another one, or its weights do not fit.
        TfxError: it could not be fetched.
    """
    entry = known_model(name)
    _check_importable(entry)
    path = output or named_model(entry.name)
    if path.exists() and not force:  # before anything is fetched
        raise OutputExists(f"{path} is there already: replace it with --force, or choose another name")
    (source,) = fetch_known(entry, file=file, mirror=mirror, report=report)
    if source.suffix == ".onnx":
        audio, model = (entry.config.get(section, {}) for section in ("audio", "model"))
        return import_mdx_net(
            source,
            path,
            stft=[f"n_fft={audio['n_fft']}"],
            stems=[*entry.stems, *([entry.complement] if entry.complement else [])],
            compensate=model.get("compensate"),
            license_=entry.license,
            provenance=origin(entry),
            force=force,
        )
    settings, where = settings_of_known(entry), origin(entry)
    bundle, _ = import_checkpoint(source, settings, path, precision=precision, provenance=where, force=force)
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
        UsageError: it is in several files.
    """
    strange = [part for part in entry.extras if part not in PARTS]
    if strange:
        raise BundleError(
            f"{entry.name} has {', '.join(strange)}, which is not known here: only plain networks of its "
            "kind can be imported"
        )
    if len(entry.files) > 1:
        names = ", ".join(file.name for file in entry.files)
        raise UsageError(
            f"{entry.name} is {len(entry.files)} networks ({names}): import each as a FILE of its own"
        )
