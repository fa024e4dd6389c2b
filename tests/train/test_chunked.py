"""Published files, imported and streamed by the rule of others, beside how their packages separate a song."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file
from tfswa.runtime.stream.separator import Separator

torch = pytest.importorskip("torch", reason="torch is not installed: weights are imported with it")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from make_chunked import CHUNKS, CONFIGS, FILE, OVERLAPS, SAMPLES, START, STRIDE, weight_of  # noqa: E402

from tfswa.train.importers.checkpoint import import_checkpoint  # noqa: E402
from tfswa.train.importers.kinds import Settings  # noqa: E402
from tfswa.train.importers.published import read_yaml  # noqa: E402

LEAST_DB = 60.0


@pytest.mark.parametrize("case", CONFIGS)
def test_a_song_comes_out_as_it_does_there(case: str, tmp_path: Path) -> None:
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed: it brings the song")
    with np.load(FILE) as vectors:
        right = vectors[case]
        values = {
            str(name): vectors[given]
            if (given := f"{case}_value_{name}") in vectors
            else weight_of(case)(str(name), tuple(int(size) for size in shape if size))
            for name, shape in zip(vectors[f"{case}_keys"], vectors[f"{case}_shapes"], strict=True)
        }
    weights, config = tmp_path / "model.ckpt", tmp_path / "config.yaml"
    torch.save({"state_dict": {name: torch.from_numpy(value) for name, value in values.items()}}, weights)
    config.write_text(json.dumps(CONFIGS[case]))  # which YAML reads too
    bundle, _ = import_checkpoint(weights, Settings(config=read_yaml(config)), tmp_path / "made.tfx")
    model = open_model(bundle.path)
    song = load_stem_file(path, model.spec).mixture[:, START : START + SAMPLES]
    assert model.spec.chunk_samples == CHUNKS[case]
    with Separator(model, backend="torch", overlap=OVERLAPS[case], batch=8) as separator:
        found = separator.separate(song)[..., ::STRIDE]
    assert found.shape == right.shape
    for one, other in zip(right, found, strict=True):
        value = snr_db(one, other)
        assert value is not None
        assert value >= LEAST_DB
