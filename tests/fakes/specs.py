"""Specifications of every kind that the contract allows, small ones: by what is uncommon about them."""

from __future__ import annotations

import dataclasses

from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

CHUNK = ChunkSpec(frames=24, context=4, fade=2, multiple=1)
PLAIN = ModelSpec("any", ("vocals", "rest"), stft=StftSpec(512, 128, 8000), chunk=CHUNK)
SPECS = {
    "plain": PLAIN,
    "hop does not divide": dataclasses.replace(PLAIN, stft=StftSpec(256, 55, 8000)),
    "a network that sees all bins": dataclasses.replace(PLAIN, stft=StftSpec(256, 64, 8000, seen=(0, 129))),
    "no fade, 2048/441": dataclasses.replace(
        PLAIN, stft=StftSpec(2048, 441), chunk=ChunkSpec(20, 4, 0, 1), unseen_stem="vocals"
    ),
    "mirrored again and again": dataclasses.replace(
        PLAIN, stft=StftSpec(512, 100, 8000, padding="reflect"), chunk=ChunkSpec(3, 0, 0, 1)
    ),
    "reflected, a part of the bins, another order": ModelSpec(
        "any",
        ("one", "two", "rest"),
        channels=1,
        stft=StftSpec(
            256, 100, 8000, 1 / 16, padding="reflect", offset=13, seen=(2, 120), fill=70, endless=True
        ),
        chunk=ChunkSpec(frames=20, context=5, fade=0, multiple=1, context_after=1, short=31),
        unseen_stem="two",
        residual_stem="rest",
        network_stems=("two", "one"),
    ),
    "one stem makes two": ModelSpec(
        "any",
        ("voice", "rest"),
        stft=StftSpec(128, 128, 8000, window="none", seen=(0, 65), zero_below=3),
        chunk=CHUNK,
        unseen_stem=None,
        residual_stem="rest",
        residual_gain=1.035,
        network_stems=("voice",),
    ),
    "the only stem is the mixture's rest": ModelSpec(
        "any", ("all",), stft=StftSpec(256, 64, 8000), chunk=CHUNK, residual_stem="all"
    ),
}
