"""The training configuration: durations, ranges, and what contradicts itself, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.errors import ConfigError

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from hypothesis import given
from hypothesis import strategies as st

from tfswa.train.config import (
    AugmentConfig,
    PhaseConfig,
    TrainConfig,
    steps_of,
)
from tfswa.train.config_files import load_config
from tfswa.train.strict import config_from_dict

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
    assert Path(load_config(path).data.root).is_absolute()


def test_the_demo_whose_weights_are_shipped_names_their_license() -> None:
    assert load_config(CONFIGS / "demo.toml").model.license == "CC0-1.0"


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.optim == TrainConfig().optim
    assert config.model.family == "tfswa_unet"


def test_values_of_every_section_are_read(tmp_path: Path) -> None:
    text = """
    [model]
    stems = ["a", "b"]
    hyper = {dims = [8, 16], mask = "complex"}
    [data]
    sources = {a = ["x"], b = ["y", "z"]}
    activity_db = -30
    [augment]
    speed = 1
    speed_range = [0.5, 2]
    [loss]
    perceptual = 0.1
    perceptual_network = "my.nets:vgg"
    [optim]
    length = "1.5 epochs"
    warmup = 0
    precision = "bf16"
    lr = 1
    [run]
    log_every = "20 steps"
    [[curriculum]]
    until = "1 epoch"
    bandwidth_hz = 4000
    [[curriculum]]
    until = 900
    frames = 64
    """
    config = load_config(write(tmp_path, text))
    assert config.model.stems == ("a", "b")
    assert config.model.hyper == {"dims": [8, 16], "mask": "complex"}
    assert config.data.sources == {"a": ("x",), "b": ("y", "z")}
    assert config.data.activity_db == -30.0
    assert config.augment.speed_range == (0.5, 2.0)
    assert config.loss.perceptual_network == "my.nets:vgg"
    assert (config.optim.length, config.optim.warmup) == ("1.5 epochs", 0)
    assert isinstance(config.optim.lr, float)
    assert config.optim.precision == "bf16"
    assert config.run.log_every == "20 steps"
    assert config.curriculum == (
        PhaseConfig(until="1 epoch", bandwidth_hz=4000.0),
        PhaseConfig(until=900, frames=64),
    )


@pytest.mark.parametrize(("section", "key"), [("data", "root"), ("model", "init")])
def test_paths_in_the_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    path = write(tmp_path, f'[{section}]\n{key} = "../music"')

    def resolved(path: Path, *overrides: str) -> str:
        return getattr(getattr(load_config(path, overrides), section), key)

    assert resolved(path) == str(tmp_path.parent / "music")
    assert resolved(Path("..") / path.name) == str(tmp_path.parent / "music")
    assert resolved(path, f"{section}.{key}=/abs") == "/abs"


@pytest.mark.parametrize(("section", "key"), [("data", "root"), ("model", "init")])
def test_paths_in_overrides_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    config = load_config(write(tmp_path), [f" {section}.{key} = ../music"])
    assert Path(getattr(getattr(config, section), key)) == tmp_path / "music"


def test_no_initial_weights_stay_none(tmp_path: Path) -> None:
    assert load_config(write(tmp_path)).model.init == ""


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    text = "[model]\nhyper = {dims = [1, 2]}\n[[curriculum]]\nuntil = 3\n[[curriculum]]\nuntil = '1 epoch'"
    config = load_config(write(tmp_path, text))
    again = config_from_dict(TrainConfig, json.loads(json.dumps(config.to_dict())))
    assert again == config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.length=7", 7),
        ("optim.length=7 epochs", "7 epochs"),
        ("optim.lr=2e-4", 2e-4),
        ("optim.lr=2", 2.0),
        (" optim.ema = 0.5", 0.5),
        ("optim.clip=0", 0.0),
        ("model.family=tfswa_lite", "tfswa_lite"),
        ('model.family="tfswa_lite"', "tfswa_lite"),
        ('model.stems=["accompaniment", "vocals"]', ("accompaniment", "vocals")),
        ("data.root=/a=b", "/a=b"),
        ("model.hyper.window=4", {"window": 4}),
        ("augment.gain_range=[1, 1]", (1.0, 1.0)),
        ("loss.perceptual_network=my.nets:vgg", "my.nets:vgg"),
        ("loss.perceptual_network=/nets/vgg.ts", "/nets/vgg.ts"),
    ],
)
def test_overrides(tmp_path: Path, override: str, value: object) -> None:
    config = load_config(write(tmp_path, "[optim]\nlength = 3\nbatch = 5"), [override])
    section, key, *_ = override.partition("=")[0].strip().split(".")
    assert getattr(getattr(config, section), key) == value
    assert config.optim.batch == 5


def test_paths_are_relative_to_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = """
    [model]
    init = "a.safetensors"
    [data]
    cache = "cache"
    [loss]
    perceptual = 0.01
    perceptual_network = "nets/vgg.ts"
    """
    config = load_config(write(tmp_path / "there", text), ["model.init=b.safetensors"])
    assert config.model.init == str(tmp_path / "here" / "b.safetensors")
    assert config.data.cache == str(tmp_path / "there" / "cache")
    assert config.loss.perceptual_network == str(tmp_path / "there" / "nets" / "vgg.ts")
    assert load_config(write(tmp_path)).data.cache == ""


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), ["optim.length=1", "optim.length=2"]).optim.length == 2


def test_an_override_gives_a_whole_curriculum(tmp_path: Path) -> None:
    path = write(tmp_path, "[[curriculum]]\nuntil = 3")
    assert load_config(path, ['curriculum=[{until="1 epoch", frames=64}]']).curriculum == (
        PhaseConfig("1 epoch", frames=64),
    )
    assert load_config(path, ["curriculum=[]"]).curriculum == ()


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("optim.length", "has no '='"),
        ("optim.lenght=1", r"unknown key 'optim\.lenght': did you mean 'length'"),
        ("optm.length=1", "unknown key 'optm': did you mean 'optim'"),
        ("optim.length.x=1", "length is not a table"),
        ("curriculum.0.until=1", "curriculum is not a table"),
        ("optim=1", "optim is 1, not a table"),
        ("=1", "unknown key ''"),
        ("optim.batch=", r"optim\.batch is ''"),
        ("optim.batch=many", r"optim\.batch is 'many', a str; it must be a int"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, match: str) -> None:
    refused(tmp_path, match, override, text="[optim]\nlength = 3\n[[curriculum]]\nuntil = 3")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[optimm]", "unknown key 'optimm': did you mean 'optim'"),
        ("[optim]\nbatchsize = 3", r"unknown key 'optim\.batchsize': did you mean 'batch'"),
        ("[optim]\nsteps = 3", r"unknown key 'optim\.steps': choose one of length, batch"),
        ("[augment]\ngain_db = 6.0", r"unknown key 'augment\.gain_db': did you mean 'gain"),
        ("[augment]\nzzz = 3", r"unknown key 'augment\.zzz': choose one of remix"),
        ("[pretrain]\npatch_frame = 3", r"unknown key 'pretrain\.patch_frame': did you mean 'patch_frames'"),
        ("optim = 3", "optim is 3, not a table"),
        ("[optim]\nbatch = 3.0", r"optim\.batch is 3\.0, a float; it must be a int"),
        ("[optim]\nlength = 3.0", r"optim\.length is 3\.0; it must be int or str"),
        ("[optim]\nlength = true", r"optim\.length is True"),
        ("[optim]\nlr = true", r"optim\.lr is True, a bool"),
        ("[optim]\nlr = '1'", r"optim\.lr is '1', a str"),
        ("[optim]\nprecision = 'bf61'", r"optim\.precision is 'bf61': did you mean 'bf16'"),
        ("[optim]\nprecision = 16", r"optim\.precision is 16"),
        ("[optim]\noptimizer = 'adamww'", r"optim\.optimizer is 'adamww': did you mean 'adamw'"),
        ("[optim]\nschedule = 'cosin'", r"optim\.schedule is 'cosin': did you mean 'cosine'"),
        ("[optim]\nstrategy = 'dp'", r"optim\.strategy is 'dp': did you mean 'ddp'"),
        ("[optim]\nnonfinite = 'ignore'", r"optim\.nonfinite is 'ignore': choose one of stop, skip"),
        ("[model]\nstems = 'vocals'", r"model\.stems is 'vocals', not a list"),
        ("[model]\nhyper = 3", r"model\.hyper is 3, not a table"),
        ("[data]\nsources = {vocals = 'v'}", r"data\.sources\.vocals is 'v', not a list"),
        ("[augment]\ngain_range = 0.5", r"augment\.gain_range is 0\.5, not a list"),
        ("[augment]\ngain_range = [0.5]", r"augment\.gain_range is \[0\.5\], 1 values; it needs 2"),
        ("[loss]\nwindows = [true]", r"loss\.windows\[0\] is True"),
        ("[curriculum]\nuntil = 3", r"curriculum is \{'until': 3\}, not a list"),
        ("[[curriculum]]\nframes = 64", r"curriculum\[0\] lacks until: give it a value"),
        ("[[data.sets]]\nsongs = ['a']", r"data\.sets\[0\] lacks shares: give it a value"),
        (
            "[[curriculum]]\nuntil = 3\n[[curriculum]]\nuntil = 4\nbandwith_hz = 3",
            r"unknown key 'curriculum\[1\]\.bandwith_hz': did you mean 'bandwidth_hz'",
        ),
    ],
)
def test_wrong_keys_and_types(tmp_path: Path, text: str, match: str) -> None:
    refused(tmp_path, match, text=text)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("optim.batch=-1", r"optim\.batch -1"),
        ("augment.without={vocals=1.5}", r"augment\.without\.vocals 1\.5 is not a probability"),
        ("augment.balance=2", r"augment\.balance 2\.0 is not a probability"),
        (
            "augment.reverb_share=[0.5, 1.5]",
            r"augment\.reverb_share \[0\.5, 1\.5\] must rise, and be between 0 and 1",
        ),
        ("augment.codec_kbits=[8, 64]", r"augment\.codec_kbits \[8\.0, 64\.0\] must .* between 24 and 320"),
        ("augment.equalizer_db=30", r"augment\.equalizer_db 30\.0 must be between 0 and 24"),
        ("augment.formant=-1", r"augment\.formant -1\.0 is not a probability"),
        (
            "curriculum=[{until=3,loss_without=['perceptual']}]",
            r"curriculum\[0\]\.loss_without has 'perceptual', no term of the loss",
        ),
        (
            "curriculum=[{until=3,loss_without=['spectrogram_l1','waveform_l1','multi_resolution_stft']}]",
            r"curriculum\[0\]\.loss_without leaves no term",
        ),
        ("augment.balance_db=[4, -14]", r"augment\.balance_db \[4\.0, -14\.0\] must rise"),
        ("data.sets=[{songs=[],shares={}}]", r"data\.sets\[0\]\.songs is empty"),
        ("data.sets=[{songs=['a'],shares={vocals=-1}}]", r"data\.sets\[0\]\.shares\.vocals -1\.0 must be 0"),
        ("data.sets=[{songs=['a'],shares={piano=1}}]", r"data\.sets\[0\]\.shares has 'piano', which is not"),
        ("optim.frames=0", r"optim\.frames 0"),
        ("optim.lr=0.0", r"optim\.lr 0\.0"),
        ("optim.lr=nan", r"optim\.lr nan"),
        ("optim.lr=inf", r"optim\.lr inf"),
        ("optim.clip=-1", r"optim\.clip -1"),
        ("optim.accumulate=0", r"optim\.accumulate 0"),
        ("optim.patience=0", r"optim\.patience 0"),
        ("optim.decay_factor=0", r"optim\.decay_factor 0"),
        ("optim.decay_factor=1", r"optim\.decay_factor 1\.0 must be below 1"),
        ("optim.ema=1.0", r"optim\.ema 1\.0"),
        ("optim.ema=-0.1", r"optim\.ema"),
        ("optim.ema=nan", r"optim\.ema"),
        ("optim.lr_end=-1e-5", r"optim\.lr_end"),
        ("optim.weight_decay=-1.0", r"optim\.weight_decay"),
        ("optim.seed=-1", r"optim\.seed -1"),
        ("data.draws=0", r"data\.draws 0"),
        ("data.workers=-1", r"data\.workers -1"),
        ("data.cache_gb=0", r"data\.cache_gb 0"),
        ("run.keep=0", r"run\.keep 0"),
        ("run.statistics_batches=0", r"run\.statistics_batches 0"),
        ("run.validation_seconds=-1.0", r"run\.validation_seconds"),
        ("loss.spectrogram_l1=-1.0", r"loss\.spectrogram_l1"),
        ("loss.perceptual=nan", r"loss\.perceptual nan"),
        ("loss.windows=[]", r"loss\.windows"),
        ("loss.windows=[512, 3]", r"loss\.windows \[512, 3\]"),
        ("pretrain.patch_frames=0", r"pretrain\.patch_frames 0"),
        ("pretrain.patch_bins=-8", r"pretrain\.patch_bins -8"),
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


DURATIONS = (
    *("optim.length", "optim.warmup", "optim.decay_every"),
    *("run.log_every", "run.validate_every", "run.checkpoint_every"),
)


@pytest.mark.parametrize("key", DURATIONS)
@pytest.mark.parametrize("value", ["-1", "3 days", "epochs"])
def test_what_is_no_duration_is_refused_by_name(tmp_path: Path, key: str, value: str) -> None:
    refused(tmp_path, rf"^{key} .*{value}.* is no duration: write 500", f"{key}={value}")


def test_only_the_warm_up_may_be_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), ["optim.warmup=0"]).optim.warmup == 0
    for key in set(DURATIONS) - {"optim.warmup"}:
        refused(tmp_path, f"{key} 0 is no duration", f"{key}=0")


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (1, 1),
        (500, 500),
        ("500 steps", 500),
        ("1 step", 1),
        ("1e3 steps", 1000),
        ("1 epoch", 40),
        ("300 epochs", 12_000),
        ("1.5 epochs", 60),
        ("0.26 epochs", 10),
        ("0.001 epochs", 1),
        ("  2   epochs ", 80),
    ],
)
def test_durations_in_steps(duration: int | str, steps: int) -> None:
    assert steps_of(duration, 40) == steps


@pytest.mark.parametrize(
    "duration",
    [
        *(0, -3, "", "5", "epochs", "0 epochs", "-1 epochs", "1.5 steps"),
        *("nan epochs", "nan steps", "inf epochs", "3 days", "two epochs", "1 epoch 2"),
    ],
)
def test_what_is_no_duration(duration: int | str) -> None:
    with pytest.raises(ConfigError, match="is no duration") as error:
        steps_of(duration, 40)
    assert repr(duration) in str(error.value)
    assert error.value.exit_code == 2


@given(st.integers(1, 10_000), st.floats(0.001, 1000), st.floats(0.001, 1000))
def test_a_longer_duration_has_no_fewer_steps(epoch_steps: int, one: float, two: float) -> None:
    few, many = (steps_of(f"{value} epochs", epoch_steps) for value in sorted((one, two)))
    assert 1 <= few <= many
    assert steps_of(f"{epoch_steps} steps", 7) == steps_of(epoch_steps, 7) == steps_of("1 epoch", epoch_steps)


@pytest.mark.parametrize(
    "name",
    ["remix", "tempo", "pitch", "speed", "gain", "frequency_mask", "time_mask", "channel_swap", "silence"],
)
def test_names_alone_are_probabilities(tmp_path: Path, name: str) -> None:
    for value in ("1.15", "-0.5", "nan", "inf"):
        refused(tmp_path, rf"augment\.{name} {value} is not a probability", f"augment.{name}={value}")
    for value in (0, 1):
        assert getattr(load_config(write(tmp_path), [f"augment.{name}={value}"]).augment, name) == value


def test_every_augmentation_is_a_probability_or_says_how_far_it_goes() -> None:
    names = {field.name for field in dataclasses.fields(AugmentConfig)}
    extents = {name for name in names if name.rpartition("_")[2] in ("range", "semitones", "hz", "seconds")}
    assert {extent.rpartition("_")[0] for extent in extents} <= names - extents


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("tempo_range=[1.1, 0.9]", r"tempo_range \[1\.1, 0\.9\] must rise, and be between 0\.25 and 4"),
        ("tempo_range=[0.2, 1]", r"tempo_range \[0\.2, 1\.0\] must rise, and be between"),
        ("tempo_range=[1, 4.1]", r"tempo_range \[1\.0, 4\.1\]"),
        ("tempo_range=[nan, 1]", r"tempo_range \[nan, 1\.0\]"),
        ("speed_range=[0, 1]", r"speed_range \[0\.0, 1\.0\]"),
        ("speed_range=[1, 5]", r"speed_range \[1\.0, 5\.0\]"),
        ("gain_range=[1.3, 0.7]", r"gain_range \[1\.3, 0\.7\] must rise, and be 0 or above"),
        ("gain_range=[-1, 1]", r"gain_range \[-1\.0, 1\.0\]"),
        ("gain_range=[1, inf]", r"gain_range \[1\.0, inf\]"),
        ("pitch_semitones=12.5", r"pitch_semitones 12\.5 is more than an octave"),
        ("pitch_semitones=-1", r"pitch_semitones -1"),
        ("frequency_mask_hz=-1", r"frequency_mask_hz -1"),
        ("time_mask_seconds=inf", r"time_mask_seconds inf"),
    ],
)
def test_impossible_ranges(tmp_path: Path, override: str, match: str) -> None:
    refused(tmp_path, match, f"augment.{override}")


@pytest.mark.parametrize(
    "override",
    [
        "tempo_range=[0.25, 4]",
        "speed_range=[1, 1]",
        "gain_range=[0, 0]",
        "gain_range=[0, 10]",
        "pitch_semitones=12",
    ],
)
def test_ranges_at_their_limits(tmp_path: Path, override: str) -> None:
    load_config(write(tmp_path), [f"augment.{override}"])


@pytest.mark.parametrize(
    ("phase", "match"),
    [
        ("until = 0", r"curriculum\[1\]\.until 0 is no duration"),
        ("until = '3 days'", r"curriculum\[1\]\.until '3 days' is no duration"),
        ("until = 5\nframes = -64", r"curriculum\[1\] has frames -64, bandwidth_hz 0\.0"),
        ("until = 5\nbandwidth_hz = -1", r"curriculum\[1\] has frames 0, bandwidth_hz -1\.0"),
        ("until = 5\nbandwidth_hz = inf", r"bandwidth_hz inf"),
        ("until = 5\nbandwidth_hz = nan", r"bandwidth_hz nan"),
    ],
)
def test_impossible_phases_are_named_by_their_number(tmp_path: Path, phase: str, match: str) -> None:
    refused(tmp_path, match, text=f"[[curriculum]]\nuntil = 3\n[[curriculum]]\n{phase}")


def test_a_loss_without_terms_is_refused(tmp_path: Path) -> None:
    none = ["loss.spectrogram_l1=0.0", "loss.waveform_l1=0.0", "loss.multi_resolution_stft=0.0"]
    refused(tmp_path, "loss has no term", *none)
    for name in ("magnitude_l1", "spectrogram_mse", "waveform_l1", "perceptual"):
        load_config(write(tmp_path), [*none, f"loss.{name}=1", "loss.windows=[]"])


def test_pretraining_hears_one_source_and_needs_no_stems_or_loss(tmp_path: Path) -> None:
    share, source = "pretrain.share=0.5", 'data.sources={mixture = ["mixture"]}'
    config = load_config(
        write(tmp_path), [share, source, "loss.spectrogram_l1=0", "loss.multi_resolution_stft=0"]
    )
    assert config.data.sources == {"mixture": ("mixture",)}
    refused(tmp_path, r"data\.sources has vocals, accompaniment: pre-training hears one signal", share)
    refused(tmp_path, "names no files for stem 'vocals'", source)


@pytest.mark.parametrize("share", ["1.0", "-0.1", "nan"])
def test_impossible_shares_of_what_is_hidden(tmp_path: Path, share: str) -> None:
    refused(tmp_path, rf"pretrain\.share {share} must be in \[0, 1\)", f"pretrain.share={share}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load_config(tmp_path / "nothing.toml")


def test_configurations_are_frozen() -> None:
    config: Any = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.batch = 3
