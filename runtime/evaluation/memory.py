"""Memory: what measuring a song takes, what there is, and how many songs at once that allows.

Nearly all of it is BSSEval's: float64 spectra of the whole song for each channel of each stem, and the
correlations of every channel with every other at 512 lags, as one matrix.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tfswa.runtime.audio.reading import open_audio
from tfswa.runtime.errors import AudioError, TfxError
from tfswa.runtime.evaluation.bsseval import FILTER_SAMPLES
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import SongFiles

logger = logging.getLogger(__name__)

# Peak resident memory of one process, stereo noise at 44.1 kHz with baselines, one thread, and what the terms
# below make of it (museval 0.4.1, NumPy 2.4.6; `tests/runtime/test_evaluate_memory.py` holds them together):
#     2 stems, 30 s    782 MB    851 MB        4 stems, 30 s    1432 MB    1637 MB
#     2 stems, 60 s   1267 MB   1335 MB        4 stems, 60 s    2228 MB    2403 MB
# The spectra are as long as the next power of two: 60 s are the same as 95 s.
WORKER_BYTES = 200e6  # the process with museval imported has 149e6; the rest is what freeing leaves in pieces
MATRICES = 5  # the correlations: as made, reshaped, the diagonal, their sum, and the solver's
SPECTRA = 4  # of one channel, while it is correlated; those of the estimate come on top
SAMPLE_BYTES = 28  # stems and estimates in float64, and in float32 stems, estimates and oracle's
HOST_COPIES = 18  # of the mixture in float32: what loading and separating a song of four stems keeps at once

MEMINFO = Path("/proc/meminfo")
CGROUPS = (  # folder, limit, usage: version 2, version 1; a container sees its own at the root
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def worker_bytes(samples: int, spec: ModelSpec) -> float:
    """Peak memory of a process that measures one song, baselines included.

    Args:
        samples: length of the song at the model's rate.
        spec: the model's.
    """
    rows = max(2, len(spec.stems)) * spec.channels  # a single stem is measured beside the rest
    padded = 1 << math.ceil(math.log2(samples + FILTER_SAMPLES - 1))  # museval's FFT
    spectra = 16 * padded * (rows + spec.channels + SPECTRA)
    matrices = MATRICES * 8 * (rows * FILTER_SAMPLES) ** 2
    return WORKER_BYTES + spectra + matrices + SAMPLE_BYTES * rows * samples


def host_bytes(samples: int, spec: ModelSpec) -> float:
    """Memory that loading and separating one song takes in this process, the network's apart."""
    return float(HOST_COPIES * 4 * spec.channels * samples)


def free_bytes() -> float:
    """Memory that can be had now: the system's, or what a container's limit leaves; inf if nothing tells."""
    found = [math.inf]
    with suppress(OSError, ValueError, IndexError):
        found.append(1024.0 * int(MEMINFO.read_text().partition("MemAvailable:")[2].split()[0]))
    for folder, limit, usage in CGROUPS:
        with suppress(OSError, ValueError):  # the word "max" is no number
            used = int((folder / usage).read_text())
            cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            reclaimable = int(cached.get("total_inactive_file", cached.get("inactive_file", 0)))
            found.append(float(int((folder / limit).read_text()) - used + reclaimable))
    return max(0.0, min(found))


def declared_samples(song: SongFiles, names: Sequence[str], rate: int) -> int:
    """Length of a song at a rate, as its files declare it; 0 if none does, or none can be opened."""
    longest = 0.0
    for path, stream in {song.sources[name][0]: song.sources[name] for name in names}.values():
        with suppress(TfxError), open_audio(path, stream=stream) as audio:  # decoding will say what is wrong
            longest = max(longest, (audio.samples or 0) / audio.sample_rate)
    return math.ceil(longest * rate)


def check_fits(song: str, samples: int, spec: ModelSpec, free: float) -> None:
    """See that a song can be measured alone.

    Raises:
        AudioError: it cannot.
    """
    needed = worker_bytes(samples, spec) + host_bytes(samples, spec)
    if needed > free:
        stems = f"{len(spec.stems)} stem{'s' if len(spec.stems) > 1 else ''}"
        seconds = samples / spec.stft.sample_rate
        raise AudioError(
            f"{song}: to measure {seconds:.0f} s of {stems} takes {needed / 1e9:.2f} GB of memory, "
            f"{free / 1e9:.2f} GB are free: cut the song, or free some memory"
        )


def jobs_that_fit(lengths: Mapping[str, int], spec: ModelSpec, jobs: int | None, free: float) -> int:
    """How many songs to measure at once.

    Args:
        lengths: samples of each song, by name.
        spec: the model's.
        jobs: as asked for, which is not lowered; None for a core each, or fewer if memory is short.
        free: from ``free_bytes``.

    Raises:
        AudioError: the longest song cannot even be measured alone.
    """
    longest = max(lengths, key=lambda name: lengths[name])
    samples = lengths[longest]
    check_fits(longest, samples, spec, free)
    if jobs is not None:
        return min(jobs, len(lengths))
    wanted = min(os.cpu_count() or 1, len(lengths))
    each = worker_bytes(samples, spec)
    room = free - host_bytes(samples, spec)
    fitting = wanted if math.isinf(room) else min(wanted, int(room / each))
    if fitting < wanted:
        logger.warning(
            "--jobs %d instead of %d: a song takes up to %.2f GB of memory, %.2f GB are free",
            fitting,
            wanted,
            each / 1e9,
            free / 1e9,
        )
    return fitting
