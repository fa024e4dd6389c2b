"""Damaged weights and configurations: each becomes a bundle that works, or one line; nothing is run or left.

``TFX_LONG=1`` tries thousands of each kind, otherwise a few dozen.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfswa.runtime.errors import TfxError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")
pytest.importorskip("yaml", reason="PyYAML is not installed: configurations are YAML")
from damaging import BYTES, PAYLOADS, STATES, Mkdir, laughs, rewritten  # noqa: E402
from safetensors.torch import save, save_file  # noqa: E402

from tfswa.train.families import build_network  # noqa: E402
from tfswa.train.importers.checkpoint import import_checkpoint, settings_of  # noqa: E402
from tfswa.train.importers.demucs import CLASS  # noqa: E402

LONG = bool(os.environ.get("TFX_LONG"))
MOST_MB = 300  # that an import of a file of some kilobytes may take; the largest honest one takes 60
LONGEST_LINE = 3000
FORMS = ("safetensors", "zip", "legacy")
SMALL = ModelSpec(
    "open_unmix",
    ("x",),
    hyper={"hidden": 8, "layers": 1, "bins": 20},
    stft=StftSpec(n_fft=64, hop=16, sample_rate=8000, padding="reflect", seen=(0, 33)),
    chunk=ChunkSpec(frames=32, context=3, fade=1, multiple=1),
)
YAML = """
audio:
  chunk_size: 1024
  hop_length: 16
  sample_rate: 8000
  num_channels: 2
model:
  dim: 8
training:
  instruments: [vocals, other]
  target_instrument: vocals
  samplerate: 8000
  segment: 1.5
inference:
  normalize: true
  chunk_size: 1024
"""
State = dict[str, Any]


def few_or_many(few: int, many: int) -> settings:
    return settings(
        deadline=None,
        max_examples=many if LONG else few,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


seeds = st.integers(0, 2**32).map(random.Random)


class Weights(dict[str, Any]):
    """A state dictionary that says nothing where a test fails."""

    def __repr__(self) -> str:
        return "weights"


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return Weights(
        {name.removeprefix("nets.0."): value for name, value in build_network(SMALL).state_dict().items()}
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which nothing may appear but what the test writes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path: Path, state: Mapping[str, Any], form: str) -> bool:
    """Whether a state dictionary could be written in a form."""
    try:
        if form == "safetensors":
            save_file({name: value.contiguous() for name, value in state.items()}, path)
        else:
            torch.save(dict(state), path, _use_new_zipfile_serialization=form == "zip")
    except Exception:  # what cannot be written is no file that could come
        return False
    return True


def peak_mb() -> float:
    """Of this process since it was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def outcome(folder: Path, source: Path, config: Path | None = None) -> str:
    """Import a file in a folder that holds nothing else: what was said, or ``made``."""
    before = sorted(folder.iterdir())
    Path("/proc/self/clear_refs").write_text("5")
    taken = peak_mb()
    target = folder / "out.tfx"
    try:
        import_checkpoint(source, settings_of(config, stems=None if config else ("vocals",)), target)
    except TfxError as error:
        said = str(error)
    else:
        said = "made"
        bundle = Bundle.open(target)
        weights = bundle.weights()
        build_network(bundle.spec).load_state_dict(
            {name: torch.tensor(value) for name, value in weights.items()}
        )
        assert all(np.isfinite(value).all() for value in weights.values())
        shutil.rmtree(target)
    assert "\n" not in said
    assert len(said) < LONGEST_LINE, said[:500]
    assert peak_mb() - taken < MOST_MB
    assert sorted(folder.iterdir()) == before
    return said


@given(choose=seeds)
@few_or_many(60, 5000)
def test_bytes_of_weights(here: Path, state: State, choose: random.Random) -> None:
    path = here / "a.ckpt"
    assert written(path, state, choose.choice(FORMS))
    path.write_bytes(choose.choice(BYTES)(path.read_bytes(), choose))
    outcome(here, path)


@given(choose=seeds)
@few_or_many(50, 5000)
def test_names_shapes_and_types(here: Path, state: State, choose: random.Random) -> None:
    path, damaged = here / "a.ckpt", choose.choice(STATES)(state, choose)
    if written(path, damaged, choose.choice(FORMS)):
        outcome(here, path)


def test_undamaged_files_are_made(here: Path, state: State) -> None:
    for form in FORMS:
        assert written(here / "a.ckpt", state, form)
        assert outcome(here, here / "a.ckpt") == "made"
    (here / "a.yaml").write_text(YAML)
    assert outcome(here, here / "a.ckpt", here / "a.yaml") == "made"


@given(choose=seeds)
@few_or_many(60, 10_000)
def test_lines_of_a_configuration(here: Path, state: State, choose: random.Random) -> None:
    save_file(state, here / "a.ckpt")
    text = YAML
    for _ in range(choose.randint(1, 3)):
        text = rewritten(text, choose)
    (here / "a.yaml").write_text(text)
    outcome(here, here / "a.ckpt", here / "a.yaml")


@given(choose=seeds)
@few_or_many(40, 5000)
def test_bytes_of_a_configuration(here: Path, state: State, choose: random.Random) -> None:
    save_file(state, here / "a.ckpt")
    (here / "a.yaml").write_bytes(choose.choice(BYTES)(YAML.encode(), choose))
    outcome(here, here / "a.ckpt", here / "a.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (laughs(), "it stands for more than 20000 values"),
        (laughs(merged=True), "it stands for more than 20000 values"),
        (f"training: {{instruments: *a9}}\n{laughs(10)}", "undefined alias"),
        (f"{laughs(10)}\naudio: {{hop_length: *a9}}", "it stands for more than 20000 values"),
        ("audio: &a {hop_length: [*a]}", "deep"),
        (f"audio: {{hop_length: 0x{'f' * 900}}}", "an integer of 3600 bits"),
        (f"audio: {{hop_length: {'1' + ':59' * 300}}}", "bits, 63 are read"),
        (f"audio: {{hop_length: {'1' + ':59' * 100_000}}}", "a value of 300001 characters"),
        ("audio: " + "[" * 30 + "]" * 30, "more than 20 deep"),
        ("audio: !!python/object/apply:os.mkdir [owned]", "could not determine a constructor"),
        ("audio: !!python/object/new:os.system [mkdir owned]", "could not determine a constructor"),
    ],
    ids=[
        "laughs",
        "merged",
        "none",
        "asked",
        "within",
        "hexadecimal",
        "sixties",
        "long",
        "deep",
        "apply",
        "new",
    ],
)
def test_a_configuration_that_stands_for_more_than_it_is(
    tfx: Tfx, here: Path, state: State, text: str, says: str
) -> None:
    save_file(state, here / "a.ckpt")
    (here / "a.yaml").write_text(text)
    outcome(here, here / "a.ckpt", here / "a.yaml")
    done = tfx("import", "a.ckpt", "--config", "a.yaml", "-o", "b.tfx")
    assert (done.code, len(done.lines)) == (2, 1)
    assert says in done.err
    assert not (here / "owned").exists()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("form", FORMS[1:])
def test_a_pickle_with_a_payload_is_not_run(
    tfx: Tfx, here: Path, state: State, payload: type[Mkdir], form: str
) -> None:
    attack = {**state, "fc1.weight": payload(here / "owned")}
    torch.save(attack, here / "a.ckpt", _use_new_zipfile_serialization=form == "zip")
    done = tfx("import", "a.ckpt", "--stems", "vocals", "-o", "b.tfx")
    assert (done.code, len(done.lines), "which is code and no weights" in done.err) == (1, 1, True), done.err
    assert [path.name for path in here.iterdir()] == ["a.ckpt"]


def test_what_a_package_says_of_itself_is_bounded(here: Path, state: State) -> None:
    """Numbers that Python does not print, and lists of lists that are written out in a message."""
    path, bomb = here / "a.th", ["x"]
    for _ in range(30):
        bomb = [bomb, bomb]
    within: list[Any] = []
    within.append(within)
    seen = Counter[str]()
    for name in ("sources", "nfft", "samplerate", "segment", "dconv_comp", "freq_emb", "t_heads", "unknown"):
        for value in (10**5000, -1, bomb, within, "x" * 10_000, float("nan"), None, {1: 2}, torch.zeros(3)):
            stored = {"klass": Fraction, "args": (), "kwargs": {name: value}, "state": state}
            for klass in (Fraction, value):
                torch.save({**stored, "klass": klass}, path)
                seen["made" if outcome(here, path) == "made" else "refused"] += 1
    for value in (
        '{"nfft": ' + "9" * 6000 + "}",
        "[" * 100_000,
        '{"sources": [' + "[]," * 30_000 + "[]]}",
        "{",
    ):
        path.write_bytes(save(state, {"klass": CLASS, "args": "[]", "kwargs": value}))
        assert outcome(here, path) != "made"
    assert seen["made"] == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lstm.weight_ih_l999999999", "counts to"),
        ("lstm.weight_ih_l" + "9" * 6000, "counts to"),
        ("x" * 100_000, "1 unexpected (xxx"),
        ("a\nb", "1 unexpected"),
    ],
    ids=["layers", "more layers", "long", "two lines"],
)
def test_a_name_costs_no_more_than_it_is_long(
    tfx: Tfx, here: Path, state: State, name: str, says: str
) -> None:
    save_file({**state, name: torch.zeros(1)}, here / "a.ckpt")
    assert says in outcome(here, here / "a.ckpt")
    done = tfx("import", "a.ckpt", "--stems", "vocals", "-o", "b.tfx")
    assert done.code == 1
    assert done.lines[-1].startswith("tfx: ")
    assert len(done.lines[-1]) < LONGEST_LINE
    assert says in done.lines[-1]
    assert [path.name for path in here.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("key", [10**50, (1, 2), 1.5, None], ids=["huge", "tuple", "float", "none"])
def test_names_that_are_no_names(here: Path, state: State, key: Any) -> None:
    for content in ({**state, key: torch.zeros(1)}, {"model": {**state, key: torch.zeros(1)}}):
        torch.save(content, here / "a.ckpt")
        assert "names something by" in outcome(here, here / "a.ckpt")


@given(choose=seeds)
@few_or_many(8, 1000)
def test_bytes_of_a_published_graph(here: Path, choose: random.Random) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: published graphs need it")
    from mdx_like import STFT, write_mdx

    from tfswa.train.importers.mdx_net import import_mdx_net

    path = write_mdx(here / "a.onnx")
    path.write_bytes(choose.choice(BYTES)(path.read_bytes(), choose))
    target = here / "out.tfx"
    try:
        import_mdx_net(path, target, stft=STFT, stems=("vocals", "accompaniment"), compensate=1.02)
    except TfxError as error:
        said = str(error)
    else:
        said = "made"
        Bundle.open(target).file("model.onnx")
        shutil.rmtree(target)
    assert "\n" not in said
    assert len(said) < LONGEST_LINE
    assert list(here.iterdir()) == [path]
