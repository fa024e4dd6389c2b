"""The context that ``seams`` finds, written into a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tfswa.runtime.errors import GateError
from tfswa.runtime.model.bundle import WEIGHTS, Bundle
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.seams import Seams


def store_context(model: Model, seams: Seams, output: Path | None = None, *, force: bool = False) -> Path:
    """Write the context that was found into the manifest.

    The spec is part of what artifacts, engines and evidence are bound to. So it is changed in place only
    where there are none of them; otherwise a new bundle takes the weights and the documents along and
    nothing else, and the rest is made again there.

    Args:
        model: what was measured.
        seams: what was found.
        output: a new bundle; default: the model's own.
        force: replace what is at ``output``.

    Returns:
        The bundle that was written.

    Raises:
        GateError: no context was found.
        UsageError: in place, and the bundle is sealed or holds what was made from it.
        OutputExists: ``output`` is there.
    """
    bundle = model.bundle
    assert bundle is not None
    if seams.context is None:
        raise GateError(
            f"no context of {model.name} has seams within {seams.limit_db:g} dB: nothing was stored"
        )
    chunk = replace(bundle.spec.chunk, context=seams.context)
    note = {
        "seams": {
            "context": seams.context,
            "before": bundle.spec.chunk.context,
            "limit_db": seams.limit_db,
            "songs": list(seams.songs),
            "truth": seams.truth,
            "source": bundle.digest,
        }
    }
    if output is None:
        bundle.rechunk(chunk, note)
        return bundle.path
    spec, provenance = replace(bundle.spec, chunk=chunk), {**bundle.provenance, **note}
    documents = {n: bundle.file(n).read_bytes() for n, e in bundle.files.items() if e.kind == "document"}
    precision = bundle.files[WEIGHTS].precision
    made = Bundle.create(
        output, spec, bundle.weights(), provenance=provenance, precision=precision, force=force
    )
    for name, content in documents.items():
        made.add(name, content, kind="document")
    return output
