"""UVR's MDX-Net graphs as they are: which one it is, and a bundle that holds it and separates with it.

They are ONNX files of TFC-TDF networks (M. Kim et al., KUIELab-MDX-Net, MDX workshop at ISMIR 2021), one stem
each::

    input [B, 4, bins, frames] = L.re L.im R.re R.im  ->  output, the same shape: the spectrum of one stem

UVR transforms with a Hann window of n_fft samples, a hop of 1024 and the signal mirrored at its ends. It
gives the lowest three bins as zero, takes the bins that the network does not see for zero, and leaves
n_fft / 2 samples at either end of a chunk out. The other stem is the mixture less ``compensate`` times the
first. None of these numbers is in the file: they are found by a hash, in ``mdx_known.toml``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.backends.running import infer
from tfswa.runtime.errors import BundleError, ConfigError, OutputExists, TfxError, UsageError, reason
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.files.partial import temporary
from tfswa.runtime.gates import gate_for
from tfswa.runtime.metrics import finite_db, likeness_db
from tfswa.runtime.model import onnx_file
from tfswa.runtime.model.bundle import GRAPH, Bundle, whole_bundle
from tfswa.runtime.model.opening import METADATA, open_model
from tfswa.runtime.model.spec import INPUT, OUTPUT, ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream.transform import Stft
from tfswa.train.importers.kinds import NO_LICENSE, rest_of
from tfswa.train.importers.mdx_known import Known, known_graphs, tail_md5
from tfswa.train.published import ZEROED, Ends, PublishedNetwork, ends_of, read_graph
from tfswa.train.rewriting import gflop, sealed_message, to_contract
from tfswa.train.strict import config_from_dict, parse_overrides

HOP = 1024
ZEROED_BINS = 3
PLANES = 4
ARTIFACT = "model.onnx"
NAMES = {"instrumental": "accompaniment"}  # what the table says, and what stems are called here


def knows_onnx(path: Path) -> bool:
    """Whether a file is what ``import_mdx_net`` takes: ONNX, four planes to four planes, not made by tfx."""
    try:
        _looked_at(path)
    except (TfxError, OSError):
        return False
    return True


def import_mdx_net(
    source: Path,
    output: Path,
    *,
    stft: Sequence[str] = (),
    chunk: Sequence[str] = (),
    stems: Sequence[str] | None = None,
    compensate: float | None = None,
    license_: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Bundle:
    """Make a bundle of an MDX-Net graph: the file as it is, and ``model.onnx``, which meets the contract.

    Args:
        source: the ONNX file.
        output: the bundle.
        stft: of the transform, ``key=value``, before what the table says; a file that is not in the table
            needs ``n_fft``.
        chunk: likewise of the chunks.
        stems: what the network gives, and what the rest is called; or the first alone. Default: the table's.
        compensate: what the stem is multiplied by before it is taken from the mixture; default: the table's,
            else 1.
        license_: of the weights.
        provenance: what else is known of where it comes from.
        force: replace an existing bundle.

    Raises:
        OutputExists: the bundle is there and ``force`` is False.
        UsageError: the file cannot be opened, is tfx's own, or is not in the table and says too little.
        ConfigError: an unknown key, or values that contradict each other.
        BundleError: the file is damaged, keeps numbers elsewhere, or is no such graph.
    """
    if output.exists() and not force:  # before anything is read
        raise OutputExists(f"{output} is there already: replace it with --force, or choose another name")
    ends = _looked_at(source)
    digest = tail_md5(source)
    known = known_graphs().get(digest)
    spec = _spec_of(source, ends, known, digest, stft, chunk, stems, compensate)
    spec = replace(spec, weights_license=license_ or NO_LICENSE, parameters=ends.parameters)
    known_of_it = {
        "command": "tfx import",
        "graph": source.name,
        "graph_sha256": sha256_of(source),
        "graph_md5": digest,
        "published_as": known.name if known else "",
        **(provenance or {}),
    }
    return _written(source, spec, known_of_it, output, force=force)


def _written(
    source: Path, spec: ModelSpec, provenance: Mapping[str, Any], output: Path, *, force: bool
) -> Bundle:
    """Write the bundle, whole or not at all."""
    graph = to_contract(source, spec)
    (opset,) = (entry.version for entry in graph.opset_import)
    nodes = len(graph.graph.node)
    cost = gflop(graph, spec.chunk_samples / spec.stft.sample_rate)
    spec = replace(spec, gflop_per_second=cost)
    with whole_bundle(output, force=force) as place:
        bundle = Bundle.create_of_graph(place, spec, source, provenance=provenance)
        if bundle.files[GRAPH].sha256 != provenance["graph_sha256"]:
            raise BundleError(f"{source} changed while it was read: import it again")
        with temporary("import") as folder:
            path = folder / ARTIFACT
            path.write_bytes(sealed_message(graph, spec, "fp32", bundle.digest))
            found = {spec.outputs[0]: finite_db(_compared(source, spec, path))}
            details = {"opset": opset, "nodes": nodes, "snr_db": found, "compared_on": "generated music"}
            bundle.add(ARTIFACT, path.read_bytes(), kind="onnx", precision="fp32", details=details)
    return Bundle.open(output)


def _looked_at(path: Path) -> Ends:
    """Input and output of a file that may be imported; raises as ``import_mdx_net``."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    if onnx_file.read_metadata(path, METADATA) is not None:
        raise UsageError(
            f"{path} is an export of tfx, not a published graph: use it as it is, -m {path.name}"
        )
    onnx_file.check_whole(path)
    graph = read_graph(path)
    ends = ends_of(path, graph)
    given = tuple(dim.dim_value or None for dim in graph.graph.output[0].type.tensor_type.shape.dim)
    planes, *others = zip(ends.sizes[1:], given[1:], strict=True)
    if planes[0] != PLANES or planes[1] not in (None, PLANES):
        shown = " and gives ".join(str(count or "any number of") for count in planes)
        raise BundleError(
            f"{path} takes {shown} planes, an MDX-Net takes and gives {PLANES}, left and right: not imported"
        )
    if any(None not in pair and pair[0] != pair[1] for pair in others):
        raise BundleError(
            f"{path} takes {_shown(ends.sizes)} and gives {_shown(given)}, an MDX-Net gives the shape "
            "that it takes: not imported"
        )
    return ends


def _spec_of(
    source: Path,
    ends: Ends,
    known: Known | None,
    digest: str,
    stft: Sequence[str],
    chunk: Sequence[str],
    stems: Sequence[str] | None,
    compensate: float | None,
) -> ModelSpec:
    """What a graph is: by what is said here, by the table, by the file."""
    _, _, bins, frames = ends.sizes
    if known is not None and (bins or known.bins, frames or known.frames) != (known.bins, known.frames):
        raise BundleError(
            f"{source} has {bins} bins and {frames} frames, the table says {known.bins} and {known.frames} "
            f"of its MD5 {digest}: not imported"
        )
    transform: dict[str, Any] = {"hop": HOP, "scale": 1.0, "window": "hann", "padding": "reflect"}
    transform |= {"n_fft": known.n_fft} if known else {}
    transform |= parse_overrides(stft)
    bins = bins or (known.bins if known else None)
    if bins is not None:
        transform.setdefault("seen", [0, bins])
    frames = frames or (known.frames if known else None)
    chunks = {"context": _context(transform), "fade": 0, **parse_overrides(chunk)}
    frames = chunks.setdefault("frames", frames)
    chunks.setdefault("multiple", frames)
    names = stems if stems is not None else _stems_of(known)
    _check_told(source, ends, digest, transform, frames, names)
    given, *rest = names
    gain = compensate if compensate is not None else (known.compensate if known else 1.0)
    try:
        return ModelSpec(
            family=None,
            stems=tuple(names),
            hyper={ZEROED: ZEROED_BINS},
            stft=config_from_dict(StftSpec, transform, "stft."),
            chunk=config_from_dict(ChunkSpec, chunks, "chunk."),
            unseen_stem=None,
            residual_stem=rest[0] if rest else None,
            residual_gain=gain if rest else 1.0,
            network_stems=(given,) if rest else None,
        )
    except ConfigError:
        raise
    except BundleError as error:  # numbers that contradict each other
        raise ConfigError(f"{source}: {error}") from error


def _context(transform: Mapping[str, Any]) -> int:
    """Frames at either end of a chunk whose windows leave it: what UVR leaves out, in whole frames."""
    n_fft, hop = transform.get("n_fft", 0), transform["hop"]
    numbers = isinstance(n_fft, int) and isinstance(hop, int) and hop > 0
    return math.ceil(n_fft / 2 / hop) if numbers else 0


def _stems_of(known: Known | None) -> Sequence[str]:
    if known is None:
        return ()
    primary = NAMES.get(known.primary, known.primary)
    return primary, rest_of(primary)


def _check_told(
    source: Path,
    ends: Ends,
    digest: str,
    transform: Mapping[str, Any],
    frames: object,
    stems: Sequence[str],
) -> None:
    """See that all that neither the file nor the table says was said."""
    least = f", at least {2 * (ends.sizes[2] - 1)}" if ends.sizes[2] else ""
    wanted = {
        f"--stft n_fft=N{least}": "n_fft" not in transform,
        "--stft seen=[0,BINS]": "seen" not in transform,
        "--chunk frames=FRAMES": frames is None,
        "--stems STEM,REST": not stems,
    }
    missing = [option for option, lacks in wanted.items() if lacks]
    if missing:
        raise UsageError(
            f"{source} takes {_shown(ends.sizes)}, and is no graph that is known by its MD5, {digest}: say "
            f"what its transform and its stem are, {' '.join(missing)}"
        )
    if len(stems) > 2:
        raise UsageError(
            f"{len(stems)} stems ({', '.join(stems)}), an MDX-Net gives one, and the rest is another: "
            "name 1 or 2"
        )


def _compared(source: Path, spec: ModelSpec, path: Path) -> float:
    """SNR in dB of what is about to be the bundle's graph, against the published one, on two chunks.

    Raises:
        BundleError: it differs.
        BackendUnavailable: onnxruntime cannot compute it.
    """
    samples = 2 * spec.chunk_samples
    song = synthetic_song(spec, (samples + 1) / spec.stft.sample_rate)
    planes = Stft(spec.stft).planes(np.stack(np.split(song.mixture[:, :samples], 2, axis=-1)))
    network = PublishedNetwork(source, spec)
    right = network(torch.from_numpy(planes)).numpy()
    if not np.isfinite(right).all():
        raise BundleError(f"{source} gives NaN or Inf on generated music: not imported")
    with closing(open_session("ort", open_model(path), BackendOptions("fp32", "cpu"))) as session:
        alone, both = (infer(session, {INPUT: given})[OUTPUT] for given in (planes[:1], planes))
    pairs = [(right[0], alone[0]), *zip(right, both, strict=True)]
    found, gate = min(likeness_db(*pair) for pair in pairs), gate_for("fp32").snr_db
    if found < gate:
        raise BundleError(
            f"{source} gives something else behind the contract's ends: SNR {found:.1f} dB, gate "
            f"{gate:g} dB: not imported"
        )
    return found


def _shown(sizes: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"
