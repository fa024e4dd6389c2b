"""The configuration: strict about every key, type and number, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.errors import ConfigError

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from tfswa.train.config import (
    TrainConfig,
    config_from_dict,
    load_config,
    parse_overrides,
)

CONFIGS = Path(__file__).parents[2] / "train" / "configs"


def write(folder: Path, text: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def refused(folder: Path, match: str, *overrides: str, text: str = "") -> None:
    with pytest.raises(ConfigError, match=match) as error:
        load_config(write(folder, text), overrides)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    assert config.model.licence != "unknown"
    assert Path(config.data.root).is_absolute()


def test_there_are_shipped_configurations() -> None:
    assert (CONFIGS / "demo.toml").is_file()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.optim == TrainConfig().optim
    assert config.model.family == "tfswa_unet"


def test_values_of_every_type_are_read(tmp_path: Path) -> None:
    text = """
    [model]
    stems = ["a", "b"]
    hyper = {dims = [8, 16], mask = "complex"}
    [data]
    sources = {a = ["x"], b = ["y", "z"]}
    activity_db = -30
    [optim]
    precision = "bf16"
    lr = 1
    """
    config = load_config(write(tmp_path, text))
    assert config.model.stems == ("a", "b")
    assert config.model.hyper == {"dims": [8, 16], "mask": "complex"}
    assert config.data.sources == {"a": ("x",), "b": ("y", "z")}
    assert config.data.activity_db == -30.0
    assert isinstance(config.optim.lr, float)
    assert config.optim.precision == "bf16"


def test_the_root_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    path = write(tmp_path, '[data]\nroot = "../music"')
    assert load_config(path).data.root == str(tmp_path.parent / "music")
    assert load_config(Path("..") / path.name).data.root == str(tmp_path.parent / "music")
    assert load_config(path, ["data.root=/abs"]).data.root == "/abs"


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "[model]\nhyper = {dims = [1, 2]}"))
    again = config_from_dict(TrainConfig, json.loads(json.dumps(config.to_dict())))
    assert again == config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.steps=7", 7),
        ("optim.lr=2e-4", 2e-4),
        ("optim.lr=2", 2.0),
        (" optim.ema = 0.5", 0.5),
        ("model.family=tfswa_lite", "tfswa_lite"),
        ('model.family="tfswa_lite"', "tfswa_lite"),
        ('model.stems=["accompaniment", "vocals"]', ("accompaniment", "vocals")),
        ("data.root=/a=b", "/a=b"),
        ("model.hyper.window=4", {"window": 4}),
    ],
)
def test_overrides(tmp_path: Path, override: str, value: object) -> None:
    config = load_config(write(tmp_path, "[optim]\nsteps = 3\nbatch = 5"), [override])
    section, key, *_ = override.partition("=")[0].strip().split(".")
    assert getattr(getattr(config, section), key) == value
    assert config.optim.batch == 5


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), ["optim.steps=1", "optim.steps=2"]).optim.steps == 2


def test_parse_overrides_alone() -> None:
    assert parse_overrides(["a.b=1", "a.c=[1, 2]", "d=x y"]) == {"a": {"b": 1, "c": [1, 2]}, "d": "x y"}


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("optim.steps", "has no '='"),
        ("optim.step=1", r"unknown key 'optim\.step': did you mean 'steps'"),
        ("optm.steps=1", "unknown key 'optm': did you mean 'optim'"),
        ("optim.steps.x=1", "steps is not a table"),
        ("optim=1", "optim is 1, not a table"),
        ("=1", "unknown key ''"),
        ("optim.steps=", r"optim\.steps is ''"),
        ("optim.steps=many", r"optim\.steps is 'many', a str; it must be a int"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, match: str) -> None:
    refused(tmp_path, match, override, text="[optim]\nsteps = 3")


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a is not a table"):
        parse_overrides(["a=1", "a.b=2"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[optimm]", "unknown key 'optimm': did you mean 'optim'"),
        ("[optim]\nbatchsize = 3", r"unknown key 'optim\.batchsize': did you mean 'batch'"),
        ("[augment]\nzzz = 3", r"unknown key 'augment\.zzz': choose one of remix"),
        ("optim = 3", "optim is 3, not a table"),
        ("[optim]\nsteps = 3.0", r"optim\.steps is 3\.0, a float; it must be a int"),
        ("[optim]\nsteps = true", r"optim\.steps is True, a bool"),
        ("[optim]\nlr = true", r"optim\.lr is True, a bool"),
        ("[optim]\nlr = '1'", r"optim\.lr is '1', a str"),
        ("[optim]\nprecision = 'bf61'", r"optim\.precision is 'bf61': did you mean 'bf16'"),
        ("[optim]\nprecision = 16", r"optim\.precision is 16"),
        ("[model]\nstems = 'vocals'", r"model\.stems is 'vocals', not a list"),
        ("[model]\nstems = ['a', 3]", r"model\.stems\[1\] is 3"),
        ("[model]\nfamily = 3", r"model\.family is 3"),
        ("[model]\nhyper = 3", r"model\.hyper is 3, not a table"),
        ("[data]\nsources = ['a']", r"data\.sources is \['a'\], not a table"),
        ("[data]\nsources = {vocals = 'v'}", r"data\.sources\.vocals is 'v', not a list"),
        ("[data]\nsources = {vocals = [1]}", r"data\.sources\.vocals\[0\] is 1"),
        ("[loss]\nwindows = [true]", r"loss\.windows\[0\] is True"),
    ],
)
def test_wrong_keys_and_types(tmp_path: Path, text: str, match: str) -> None:
    refused(tmp_path, match, text=text)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("optim.steps=0", r"optim\.steps 0"),
        ("optim.batch=-1", r"optim\.batch -1"),
        ("optim.frames=0", r"optim\.frames 0"),
        ("optim.lr=0.0", r"optim\.lr 0\.0"),
        ("optim.lr=nan", r"optim\.lr nan"),
        ("optim.lr=inf", r"optim\.lr inf"),
        ("optim.clip=0.0", r"optim\.clip"),
        ("optim.ema=1.0", r"optim\.ema 1\.0"),
        ("optim.ema=-0.1", r"optim\.ema"),
        ("optim.ema=nan", r"optim\.ema"),
        ("optim.warmup=-1", r"optim\.warmup -1"),
        ("optim.lr_end=-1e-5", r"optim\.lr_end"),
        ("optim.weight_decay=-1.0", r"optim\.weight_decay"),
        ("optim.seed=-1", r"optim\.seed -1"),
        ("augment.remix=1.5", r"augment\.remix 1\.5 is not a probability"),
        ("augment.silence=-0.5", r"augment\.silence"),
        ("augment.channel_swap=2", r"augment\.channel_swap"),
        ("augment.speed=0.9", r"augment\.speed 0\.9"),
        ("augment.speed=nan", r"augment\.speed"),
        ("augment.gain_db=-1.0", r"augment\.gain_db"),
        ("augment.gain_db=inf", r"augment\.gain_db"),
        ("data.draws=0", r"data\.draws 0"),
        ("data.workers=-1", r"data\.workers -1"),
        ("run.log_every=0", r"run\.log_every 0"),
        ("run.validate_every=0", r"run\.validate_every 0"),
        ("run.statistics_batches=0", r"run\.statistics_batches 0"),
        ("run.validation_seconds=-1.0", r"run\.validation_seconds"),
        ("loss.spectrogram_l1=-1.0", r"loss\.spectrogram_l1"),
        ("loss.windows=[]", r"loss\.windows"),
        ("loss.windows=[0]", r"loss\.windows"),
        ("model.stems=[]", r"model\.stems"),
        ('model.stems=["vocals", "vocals"]', r"model\.stems"),
        ("model.residual_stem=drums", r"model\.residual_stem 'drums'"),
        ('model.stems=["vocals", "drums"]', r"names no files for stem 'drums'; it has vocals, accompaniment"),
        ("data.sources.vocals=[]", "names no files for stem 'vocals'"),
        ('model.stems=["vocals"]', r"data\.sources.*accompaniment.*model\.stems"),
    ],
)
def test_impossible_values(tmp_path: Path, override: str, match: str) -> None:
    refused(tmp_path, match, override)


def test_a_loss_without_terms_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "loss", "loss.spectrogram_l1=0.0", "loss.multi_resolution_stft=0.0")
    load_config(write(tmp_path), ["loss.multi_resolution_stft=0.0", "loss.windows=[]"])


@pytest.mark.parametrize("content", [b"[model", b"a = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_not_toml_is_refused_naming_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML"):
        load_config(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.toml"):
        with pytest.raises(ConfigError, match=path.name):
            load_config(path)


def test_configurations_are_frozen() -> None:
    config: Any = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.steps = 3
