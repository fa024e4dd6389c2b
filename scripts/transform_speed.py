"""What the host's transform and its inverse cost for each second of audio, by window and hop, in turns.

scripts/transform_speed 2048/512 2048/441 prints milliseconds of one thread for a second of stereo at 44.1 kHz
(median), and their ratio to the first (median of the rounds, least, greatest). A round times all of them.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from tfswa.runtime.model.spec import StftSpec
from tfswa.runtime.stream.transform import Stft
from tfswa.runtime.table import markdown_table

RATE = 44_100
SECONDS = 6.0  # of audio: about a chunk


def main() -> None:
    """Time them."""
    parser = argparse.ArgumentParser(prog="scripts/transform_speed", description=__doc__)
    parser.add_argument("transforms", nargs="+", metavar="N_FFT/HOP", help="two or more")
    parser.add_argument("--rounds", type=int, default=41, help="default: 41")
    asked = parser.parse_args()
    made = []
    for text in asked.transforms:
        try:
            n_fft, hop = map(int, text.split("/"))
        except ValueError:
            parser.error(f"{text!r} is not N_FFT/HOP, such as 2048/441")
        made.append(Stft(StftSpec(n_fft=n_fft, hop=hop, sample_rate=RATE)))
    noise = np.random.default_rng(0).standard_normal((2, int(SECONDS * RATE))).astype(np.float32)
    times = [[timed(stft, noise) for stft in made] for _ in range(asked.rounds + 1)][1:]  # the first warms up
    rows = []
    for number, text in enumerate(asked.transforms):
        mine, ratios = [row[number] for row in times], [row[number] / row[0] for row in times]
        shares = (round(value, 3) for value in (median(ratios), min(ratios), max(ratios)))
        rows.append((text, round(1000 * median(mine) / SECONDS, 3), *shares))
    columns = ("transform", "ms for a second", f"beside {asked.transforms[0]}", "least", "greatest")
    print("\n".join(markdown_table(columns, rows)))


def timed(stft: Stft, signal: np.ndarray) -> float:
    """CPU seconds of this thread for a signal, there and back."""
    begun = time.thread_time()
    stft.inverse(stft.forward(signal), signal.shape[-1])
    return time.thread_time() - begun


if __name__ == "__main__":
    main()
