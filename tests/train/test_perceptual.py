"""Feature networks of the perceptual loss: the built-in one, TorchScript files, importable ones."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx

from tfswa.runtime.errors import ConfigError, UntrustedError
from tfswa.runtime.files import seal
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model.trust import trust

torch = pytest.importorskip("torch", reason="torch is not installed: losses need it")

from tfswa.train.config import LossConfig  # noqa: E402
from tfswa.train.config_files import RUN_CONFIG, load_config  # noqa: E402
from tfswa.train.losses import SeparationLoss  # noqa: E402
from tfswa.train.perceptual import LogMel, mel_bank, perceptual_network  # noqa: E402

CPU = torch.device("cpu")
RATE = 8000

USER_CODE = """
import torch
from torch import nn


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 4, 9, stride=4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Conv1d(4, 6, 5, stride=2)

    def forward(self, wave):
        one = torch.tanh(self.norm(self.first(wave)))
        return one, self.second(one)


class Hidden(Convs):
    @torch.no_grad()
    def forward(self, wave):
        return super().forward(wave)


class Fixed(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, wave):
        return self.function(wave)


class Mono(nn.Conv1d):
    def __init__(self):
        super().__init__(1, 2, 3)


def build():
    torch.manual_seed(0)
    return Convs()


ready = build()
level = Fixed(lambda wave: wave.square().mean(-1))
rounded = Fixed(lambda wave: (8 * wave).round())
whole = Fixed(lambda wave: (100 * wave).long())
table = Fixed(lambda wave: {"a": wave})
nested = Fixed(lambda wave: [wave, (wave, wave)])
nothing = Fixed(lambda wave: [])
scalar = Fixed(lambda wave: wave.mean())
swapped = Fixed(lambda wave: wave.transpose(0, 2))
broken = Fixed(lambda wave: wave / 0)
cornered = Fixed(lambda wave: (wave * 0).abs().sqrt() + wave)
shared = Fixed(lambda wave: wave - wave.mean(0))


class folder:
    ready = ready


def needs(argument):
    return Convs()


def number():
    return 3


constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """``module(attribute)``: a name in a package of the user's that can be imported."""
    package = f"user{abs(hash(tmp_path))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "nets.py").write_text(USER_CODE)
    (tmp_path / package / "empty.py").write_text("")
    (tmp_path / package / "wrong.py").write_text("import nothing_of_that_name\n")
    (tmp_path / package / "noisy.py").write_text("raise RuntimeError('first line\\nno weights here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda rest: f"{package}.{rest}" if ":" in rest else f"{package}.nets:{rest}"


def user_object(name: str) -> Any:
    import importlib

    place, _, attribute = name.partition(":")
    return getattr(importlib.import_module(place), attribute)


def save_script(network: Any, path: Path, *, trace: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; tracing warns of batch norm's checks
        example = torch.randn(2, 2, RATE)
        scripted = (
            torch.jit.trace(network, example, check_trace=False) if trace else torch.jit.script(network)
        )
        scripted.save(str(path))
    trust(sha256_of(path))
    return path


def noise(*shape: int, seed: int = 0) -> Any:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def refused(name: str | Path, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        perceptual_network(str(name), RATE, CPU)
    message = str(error.value)
    assert "\n" not in message
    assert str(name) in message
    assert error.value.exit_code == 2


def test_log_mel_of_a_sine_peaks_in_its_band_at_its_level() -> None:
    rate, band = 44_100, 40
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), 82)[band + 1]
    frequency = round(700 * (10 ** (mel / 2595) - 1) * 2048 / rate) * rate / 2048  # the bin at its center
    time = torch.arange(rate, dtype=torch.float64) / rate
    sine = torch.sin(2 * torch.pi * frequency * time).float().expand(1, 2, -1)
    (layer,) = perceptual_network("log_mel", rate, CPU)(sine)
    assert layer.shape == (1, 2, 80, 1 + rate // 512)
    inner = layer[0, 0, :, 10:-10]
    assert bool((inner.argmax(0) == band).all())
    # Half of the main lobe's power lies in the bins beside, a little down the slopes of the triangle.
    assert inner[band].mean() == pytest.approx(np.log(512**2 * 1.5), abs=0.15)


def test_log_mel_of_silence_is_its_floor() -> None:
    (layer,) = LogMel(RATE, CPU)(torch.zeros(3, 1, 4096))
    assert layer.shape == (3, 1, 80, 9)
    assert torch.allclose(layer, torch.tensor(1e-5).log())


@pytest.mark.parametrize("rate", [8000, 44_100, 96_000])
def test_the_bands_of_the_bank_overlap_by_half_and_leave_no_gap(rate: int) -> None:
    bank = mel_bank(80, 2048, rate).double()
    assert bank.shape == (80, 1025)
    assert bool((bank >= 0).all())
    assert bool((bank <= 1).all())
    assert bool((bank.sum(1) > 0).all())
    bins = np.arange(1025) * rate / 2048
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), 82) / 2595) - 1)
    inside = (bins > edges[1]) & (bins < edges[-2])
    assert bank.sum(0)[inside] == pytest.approx(1.0, abs=1e-5)
    assert bank[:, [0, -1]].sum() == pytest.approx(0, abs=1e-6)


def test_a_torchscript_file_gives_the_layers_of_the_network(
    tmp_path: Path, module: Callable[[str], str]
) -> None:
    network = user_object(module("ready")).eval()
    features = perceptual_network(str(save_script(network, tmp_path / "convs.ts")), RATE, CPU)
    wave = noise(3, 2, 1000)
    layers = features(wave)
    assert [tuple(layer.shape) for layer in layers] == [(3, 4, 248), (3, 6, 122)]
    for layer, expected in zip(layers, network(wave), strict=True):
        assert torch.allclose(layer, expected, atol=1e-6)


@pytest.mark.parametrize("attribute", ["ready", "build", "Convs", "folder.ready"])
def test_an_importable_module_class_or_function(module: Callable[[str], str], attribute: str) -> None:
    layers = perceptual_network(module(attribute), RATE, CPU)(noise(1, 2, 1000))
    assert [layer.shape[1] for layer in layers] == [4, 6]


def test_a_network_that_gives_one_tensor(module: Callable[[str], str]) -> None:
    wave = noise(1, 2, 1000)
    (layer,) = perceptual_network(module("level"), RATE, CPU)(wave)
    assert torch.equal(layer, wave.square().mean(-1))


def test_the_network_is_frozen_and_evaluates(module: Callable[[str], str]) -> None:
    network = user_object(module("ready")).train()
    features = perceptual_network(module("ready"), RATE, CPU)
    assert not network.training
    before = network.norm.running_mean.clone()
    wave = noise(2, 2, 1000).requires_grad_()
    features(wave)[1].square().sum().backward()
    assert bool(wave.grad.any())
    assert all(not weight.requires_grad and weight.grad is None for weight in network.parameters())
    assert torch.equal(network.norm.running_mean, before)


def test_a_script_saved_in_training_mode_evaluates(tmp_path: Path, module: Callable[[str], str]) -> None:
    network = user_object(module("build"))()
    features = perceptual_network(str(save_script(network.train(), tmp_path / "convs.ts")), RATE, CPU)
    wave = noise(2, 2, 1000)
    assert torch.allclose(features(wave)[1], network.eval()(wave)[1], atol=1e-6)


def test_a_script_has_frozen_weights(
    tmp_path: Path, module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, loaded = save_script(user_object(module("build"))(), tmp_path / "convs.ts"), []
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[0])
    perceptual_network(str(path), RATE, CPU)
    weights = list(loaded[0].parameters())
    assert len(weights) == 6
    assert not any(weight.requires_grad for weight in weights)


def test_only_the_deprecation_of_torchscript_is_silenced(
    tmp_path: Path, module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_script(user_object(module("build"))(), tmp_path / "convs.ts")
    load = torch.jit.load

    def noisy(*arguments: Any, **options: Any) -> Any:
        warnings.warn("`another` is deprecated", DeprecationWarning, stacklevel=1)
        return load(*arguments, **options)

    monkeypatch.setattr(torch.jit, "load", noisy)
    with pytest.warns(DeprecationWarning, match="another"):
        perceptual_network(str(path), RATE, CPU)


def test_the_loss_learns_through_a_user_network(module: Callable[[str], str]) -> None:
    """Gradient descent on the waveform brings the features together."""
    planes = torch.zeros(1, 1, 4, 2, 2)
    config = LossConfig(
        spectrogram_l1=0.0, multi_resolution_stft=0.0, perceptual=1.0, perceptual_network=module("ready")
    )
    loss = SeparationLoss(config, RATE, CPU)
    wave, truth = noise(1, 1, 2, 500).requires_grad_(), noise(1, 1, 2, 500, seed=1)
    optimizer = torch.optim.Adam([wave], lr=0.01)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        total, parts = loss(planes, planes, wave, truth)
        total.backward()
        optimizer.step()
        values.append(float(parts["perceptual"]))
    assert values[-1] < 0.3 * values[0]


def test_files_that_are_missing_or_something_else(tmp_path: Path) -> None:
    refused(tmp_path / "none.ts", "is no file: write log_mel, the path of a TorchScript file")
    refused("log_mell", "is no file: write log_mel")
    refused(tmp_path, "is no file")
    (tmp_path / "text.ts").write_text("hello")
    trust(sha256_of(tmp_path / "text.ts"))
    refused(tmp_path / "text.ts", r"is not TorchScript \(.*zip.*\): save it with torch\.jit\.save")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    trust(sha256_of(tmp_path / "state.pt"))
    refused(tmp_path / "state.pt", "is not TorchScript")


@pytest.mark.parametrize(
    ("rest", "match"),
    [
        ("nots:ready", r"nots cannot be imported \(ModuleNotFoundError: .*\): install it, or put it on PYTH"),
        ("wrong:ready", "No module named 'nothing_of_that_name'"),
        ("noisy:ready", r"cannot be imported \(RuntimeError: no weights here\)"),
        ("reddy", "has no 'reddy': did you mean 'ready'"),
        ("folder.reddy", "has no 'reddy': did you mean 'ready'"),
        ("zzz", "has no 'zzz': choose one of .*Convs"),
        ("empty:zzz", "has no 'zzz': it defines nothing that gives a network"),
        ("needs", r"without arguments \(TypeError: .*argument.*\): give a function that needs none"),
        ("number", r"gives int, not an nn\.Module"),
        ("constant", r"gives int, not an nn\.Module"),
        ("Hidden", "is not differentiable: the gradient from its 2 layers to the waveform is 0"),
        ("rounded", "is not differentiable: the gradient from its 1 layers"),
        ("whole", "is not differentiable"),
        ("cornered", "gradient that is NaN or Inf"),
        ("table", "gives dict as layer 0, not a tensor: return a tensor, or a tuple or list of tensors"),
        ("nested", "gives tuple as layer 1, not a tensor"),
        ("nothing", "gives 0 tensors"),
        ("scalar", r"gives layer 0 as \[\] for 2 waveforms: it must be \[2, \.\.\.\]"),
        ("swapped", r"gives layer 0 as \[4000, 2, 2\] for 2 waveforms"),
        ("broken", "gives NaN or Inf in layer 0"),
        ("shared", "mixes the items of a batch: the features of item 0 depend on item 1"),
        ("Mono", r"fails on a waveform \[2, 2, 4000\] \(RuntimeError: .*\): it must take .* at 8000 Hz"),
    ],
)
def test_modules_that_cannot_serve(module: Callable[[str], str], rest: str, match: str) -> None:
    refused(module(rest), match)


def test_a_script_that_fails_says_why_in_one_line(tmp_path: Path, module: Callable[[str], str]) -> None:
    mono = save_script(user_object(module("Mono"))(), tmp_path / "mono.ts")
    refused(mono, r"fails on a waveform \[2, 2, 4000\] \(RuntimeError: .*channels.*\)")


def test_a_network_traced_in_training_mode_is_refused(tmp_path: Path, module: Callable[[str], str]) -> None:
    """Batch norm is traced as it was called: eval() no longer reaches it."""
    network = user_object(module("build"))().train()
    path = save_script(network, tmp_path / "traced.ts", trace=True)
    refused(path, "mixes the items of a batch.*call eval")
    perceptual_network(str(save_script(network.eval(), tmp_path / "eval.ts", trace=True)), RATE, CPU)


def test_a_relative_file_with_a_colon_is_a_file(
    tmp_path: Path, module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_script(user_object(module("build"))(), tmp_path / "my:net")
    monkeypatch.chdir(tmp_path)
    assert len(perceptual_network("my:net", RATE, CPU)(noise(1, 2, 1000))) == 2


class Writer(torch.nn.Module):
    """TorchScript that creates a file wherever it is told, once it is run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        torch.save(wave, self.path)
        return wave.square()


CONFIG = """
[model]
family = "tfswa_lite"
[data]
root = "{root}"
[loss]
perceptual = 1.0
perceptual_network = "{network}"
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file from another machine that would write ``ran``."""
    path = save_script(Writer(tmp_path / "ran"), tmp_path / "hostile.ts")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other state"))
    monkeypatch.setattr(seal, "_here", set())
    return path


def test_a_script_from_elsewhere_is_refused_before_torch_opens_it(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UntrustedError, match=r"is a program .* did not make .*: --trust runs it") as error:
        perceptual_network(str(hostile), RATE, CPU)
    message = str(error.value)
    assert str(hostile) in message
    assert message.endswith("log_mel needs none")
    assert "\n" not in message
    assert error.value.exit_code == 4


@pytest.mark.parametrize("how", ["a configuration", "a run that somebody sent"])
def test_train_refuses_a_script_before_anything_else_and_takes_it_with_trust(
    hostile: Path, tmp_path: Path, song_root: Path, tfx: Tfx, how: str
) -> None:
    config, out = tmp_path / "c.toml", tmp_path / "run"
    config.write_text(CONFIG.format(root=song_root, network=hostile))
    if how == "a configuration":
        asked: tuple[object, ...] = ("train", config, "-o", out)
    else:
        (out / "checkpoints").mkdir(parents=True)
        (out / "checkpoints" / "00000001.ckpt").write_bytes(b"")
        (out / RUN_CONFIG).write_text(json.dumps(load_config(config).to_dict()))
        asked = ("train", "-o", out, "--resume")
    before = sorted(out.rglob("*"))
    done = tfx(*asked)
    assert (done.code, done.out) == (4, "")
    assert f"loss.perceptual_network {str(hostile)!r} is a program" in done.err
    assert "--trust runs it" in done.err
    assert done.err.count("\n") == 1
    assert sorted(out.rglob("*")) == before
    assert not (tmp_path / "ran").exists()
    done = tfx(*asked, "--trust", "data.root=/nowhere")  # what comes next is refused for what it is
    assert "is a program" not in done.err
    perceptual_network(str(hostile), RATE, CPU)
    assert (tmp_path / "ran").exists()  # it would have
    assert "is a program" not in tfx(*asked, "data.root=/nowhere").err  # remembered


def test_what_an_archive_may_not_hold_is_refused_though_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ts"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/constants/0", bytes(200 << 20))
    trust(sha256_of(path))
    refused(path, r"is not TorchScript \(.* declares 1 members of \d+ bytes, a file of \d+ bytes may have")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../x", b"")
    trust(sha256_of(path))
    refused(path, "leaves its folder")
