"""``tfx train`` and ``tfx new`` as a user runs them: exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tfswa.runtime import cli
from tfswa.runtime.model.bundle import WEIGHTS, Bundle

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

RATE = 44_100
HYPER = ["fold=32", "dims=[8, 8]", "depths=[1, 1]", "decoder_depths=[1]", "heads=[1, 1]", "mlp_ratio=1.0"]


def tfx(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a terminal-less shell would."""
    return subprocess.run(
        [sys.executable, "-m", "tfswa.runtime", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
    )


def new(output: Path, *more: object) -> tuple[object, ...]:
    """Arguments of ``tfx new`` for a network of a few hundred weights."""
    options = [part for value in HYPER for part in ("--hyper", value)]
    return ("new", "tfswa_lite", "-o", output, *options, *more)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The same in this process: ``inside("train", ...)``."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tfx", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_song: Callable[..., Path]) -> Path:
    """A configuration beside two songs of 4 s; two steps, validated on half a second."""
    root = tmp_path_factory.mktemp("recipe")
    random = np.random.default_rng(0)
    for name in ("A", "B"):
        sources = {
            s: (0.1 * random.standard_normal((2, 4 * RATE))).astype(np.float32) for s in ("vocals", "rest")
        }
        write_song(root / "songs" / name, sources, rate=RATE)
    (root / "tiny.toml").write_text(
        f"""
        [model]
        family = "tfswa_lite"
        [model.hyper]
        {chr(10).join(HYPER)}
        [data]
        root = "songs"
        validation = ["B"]
        cache = "{root / "decoded"}"
        sources = {{vocals = ["vocals"], accompaniment = ["rest"]}}
        [optim]
        length = 2
        batch = 1
        frames = 64
        warmup = 0
        [run]
        validate_every = 2
        pictures = false
        validation_seconds = 0.5
        statistics_batches = 1
        """
    )
    return root / "tiny.toml"


@pytest.mark.slow
def test_train_end_to_end(recipe: Path, tmp_path: Path, inside: Callable[..., Done]) -> None:
    out = tmp_path / "run"
    done = tfx("train", recipe, "-o", out, "optim.batch=2", "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert scores["run"] == str(out)
    assert scores["scores"].keys() == {"vocals", "accompaniment"}
    assert "step 2/2" in done.stderr
    assert Bundle.open(out / "best.tfx").provenance["config"]["optim"]["batch"] == 2
    # Again: refused without --resume, done at once with it, and words in place of JSON.
    again = inside("train", recipe, "-o", out)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert again.stdout == ""
    more = inside("train", recipe, "-o", out, "--resume", "optim.length=3", "--threads", 1)
    assert more.returncode == 0, more.stderr
    assert "validation SDR vocals " in more.stdout
    assert str(out / "best.tfx") in more.stdout


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("optim.lenght=1",), 2, "did you mean 'length'"),
    (("optm.length=1",), 2, "did you mean 'optim'"),
    (("optim.batch=two",), 2, "optim.batch is 'two', a str; it must be a int"),
    (("optim.lr=-1",), 2, "optim.lr -1.0 must be above 0"),
    (("optim.length=3 days",), 2, "no duration"),
    (("optim.schedule=cosin",), 2, "did you mean 'cosine'"),
    (("optim.frames=100",), 2, "optim.frames: chunk of 100 frames is not a multiple of 64: use 128"),
    (("model.hyper.window=7",), 2, "not a multiple of"),
    (("model.hyper.dims=[9, 9]",), 2, "dims 9 is not an even multiple of its"),
    (('data.sources.vocals=["voice"]',), 2, "voice"),
    (
        ('model.stems=["vocals", "drums", "accompaniment"]',),
        2,
        "data.sources names no files for stem 'drums'",
    ),
    (("optim.batch=50",), 2, "optim.batch 50 is more than the 2 chunks that the training songs hold"),
    (("augment.pitch=2",), 2, "augment.pitch 2.0 is not a probability"),
    (("loss.perceptual=1", "loss.perceptual_network=nowhere.pt"), 2, "nowhere.pt"),
    (("model.init=nowhere.safetensors",), 2, "nowhere.safetensors"),
    (("--device", "cuda:99"), 4, "cuda:99"),
    (("--resume",), 1, "nothing to resume"),
]


@pytest.mark.parametrize(("more", "code", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_requests_are_one_line_with_their_exit_code(
    recipe: Path, tmp_path: Path, inside: Callable[..., Done], more: tuple[str, ...], code: int, words: str
) -> None:
    done = inside("train", recipe, "-o", tmp_path / "r", *more)
    assert (done.returncode, words in done.stderr, done.stdout) == (code, True, ""), done.stderr
    assert done.stderr.startswith("tfx: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_requests_that_click_refuses(
    tmp_path: Path, inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("train",), ("new", "tfswa_lite"), ("train", "x", "-o", "y", "--threads", "0")):
        done = inside(*arguments)
        assert done.returncode == 2
        assert "Error" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_a_missing_configuration_is_named(tmp_path: Path, inside: Callable[..., Done]) -> None:
    done = inside("train", tmp_path / "none.toml", "-o", tmp_path / "run")
    assert done.returncode == 2
    assert "none.toml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_new_end_to_end(tmp_path: Path, inside: Callable[..., Done]) -> None:
    one, two = tmp_path / "one.tfx", tmp_path / "two.tfx"
    made = tfx(*new(one, "--seed", 5, "--json", "--stems", "vocals, drums,bass"))
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert made.stdout.count("\n") == 1
    bundle = Bundle.open(one)
    assert said == {"bundle": str(one), "parameters": bundle.spec.parameters, "seed": 5}
    assert bundle.spec.stems == ("vocals", "drums", "bass")
    assert bundle.spec.hyper["dims"] == [8, 8]
    done = inside(*new(two, "--seed", 5, "--precision", "fp16", "--stems", "vocals,drums,bass"))
    assert done.returncode == 0, done.stderr
    assert "untrained (seed 5)" in done.stdout
    full, half = bundle.weights(), Bundle.open(two).weights()
    assert Bundle.open(two).files[WEIGHTS].precision == "fp16"
    for name, value in full.items():  # the same seed, the same weights
        np.testing.assert_array_equal(value.astype(np.float16), half[name])
    refused = inside(*new(one))
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert Bundle.open(one).digest == bundle.digest
    assert inside(*new(one, "--force", "--seed", 6)).returncode == 0
    assert Bundle.open(one).digest != bundle.digest


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--hyper", "dimz=[8]"), "did you mean 'dims'"),
        (("--hyper", "mask=complexx"), "did you mean 'complex'"),
        (("--stems", "a,a"), "distinct"),
        (("--stems", "a,"), "names"),
    ],
)
def test_new_refuses_in_one_line(
    tmp_path: Path, inside: Callable[..., Done], more: tuple[str, ...], words: str
) -> None:
    done = inside(*new(tmp_path / "x.tfx", *more))
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
