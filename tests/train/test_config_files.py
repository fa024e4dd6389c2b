"""Configurations by name, and a run that is resumed as it was configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Tfx

from tfswa.runtime.errors import ConfigError, TfxError, UsageError

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from tfswa.train.config_files import find_config, load_config, load_run_config, summaries


def test_a_name_a_file_and_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, base = find_config("seed")
    assert (path.name, base) == ("seed.toml", tmp_path)
    assert load_config(path, base=base).data.root == str(tmp_path / "musdb18hq")  # not beside the package
    Path("seed").write_text("[optim]\nbatch = 7\n")  # a file comes first
    assert find_config("seed") == (Path("seed"), None)
    for name, words in (
        ("seeed", "did you mean 'seed'"),
        ("zzz", "choose one of deep, demo"),
        ("a/seed.toml", "'seed'"),
    ):
        with pytest.raises(ConfigError, match=words):
            find_config(name)
    with pytest.raises(UsageError, match="a configuration is missing"):
        find_config("")


def test_every_shipped_configuration_has_a_summary(tfx: Tfx) -> None:
    found = summaries()
    assert {"seed", "demo", "pretrain", "finetune"} <= found.keys()
    assert all(text and not text.startswith("#") for text in found.values())
    assert all(name in tfx("train", "--list").out for name in found)
    assert tfx("train", "--list", "--json").json == found


def test_resume_alone_goes_on_as_configured(
    tfx: Tfx, song_root: Path, tiny_family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        f'[model]\nfamily = "{tiny_family}"\n'
        "hyper = {dims = [8, 16], depths = [1, 1], decoder_depths = [1], "
        "heads = [1, 2], window = 4, fold = 4}\n[data]\nvalidation = ['B']\nworkers = 0\n"
        "[optim]\nlength = 2\nbatch = 1\nframes = 32\nwarmup = 0\n"
        "[run]\npictures = false\nvalidation_seconds = 0.5\nstatistics_batches = 1\n"
    )
    run = tmp_path / "run"
    first = tfx("train", config, f"data.root={song_root}", "-o", run)
    assert first.code == 0, first.err
    config.unlink()  # not needed again
    assert tfx("train", "--resume", "-o", run, "optim.length=3").code == 0
    assert load_run_config(run).optim.length == 3  # kept for the next time
    assert tfx("train", "--resume", "-o", run).code == 0
    assert load_run_config(run).data.root == str(song_root)
    assert json.loads((run / "config.json").read_text())["optim"]["batch"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "-o is missing"),
        (("-o", "run"), 2, "a configuration is missing"),
        (("seed", "paper", "-o", "run"), 2, "one CONFIG, not 2"),
        (("--resume", "-o", "run"), 1, "nothing to resume"),
    ],
)
def test_what_is_missing_is_said(
    tfx: Tfx,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tfx("train", *arguments)
    assert (done.code, words in done.err, done.out) == (code, True, ""), done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "abc"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "-1"), ("RANK", "2")]
)
def test_wrong_words_of_torchrun_are_one_line(
    tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    done = tfx("train", "seed", f"data.root={tmp_path}", "-o", tmp_path / "run")
    assert done.code == 2
    assert len(done.lines) == 1
    assert f"{name}={value!r}" in done.err or f"{name}={value}" in done.err


def test_a_damaged_run_configuration_is_named(tfx: Tfx, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    done = tfx("train", "--resume", "-o", tmp_path)
    assert done.code == 2
    assert "config.json is damaged" in done.err


WRONG: tuple[Any, ...] = (None, True, -1, 1e300, 10**30, "x", "\0", [], [[]], {}, {"x": 1}, [{"x": []}])


def test_a_run_configuration_of_wrong_types_is_one_line(tmp_path: Path) -> None:
    whole = load_config(find_config("seed")[0]).to_dict()
    changed: list[Any] = [*WRONG]
    changed += [{**whole, table: value} for table in whole for value in WRONG]
    changed += [
        {**whole, table: {**values, key: value}}
        for table, values in whole.items()
        for key in values
        for value in WRONG
    ]
    refused = []
    for data in changed:
        (tmp_path / "config.json").write_text(json.dumps(data))
        try:
            load_run_config(tmp_path)
        except TfxError as error:
            refused.append(str(error))
    assert len(refused) > len(changed) / 2
    assert not [said for said in refused if "\n" in said or len(said) > 1000]


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "{b = " * 5000,
        "optim = 3",
        "[[optim]]\nbatch = 1",
        "model = [1]",
        "[model]\nhyper = 5",
        "[data]\nsources = [1]",
        "[data.sources]\nvocals = {a = 1}",
        "[optim]\nbatch = 1979-05-27",
        "[optim]\nlr = nan",
        "[optim]\nlr = inf",
        "[model]\nstems = [[]]",
        "\0",
    ],
)
def test_a_configuration_of_wrong_types_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "wrong.toml")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
