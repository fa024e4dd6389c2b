"""A family of a third party: what is asked of its network, said in one line and by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Tfx

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")
from torch import nn  # noqa: E402

from tfswa.train import families  # noqa: E402
from tfswa.train.families import Family, build_network, new_spec  # noqa: E402

STFT, CHUNK = StftSpec(512, 128, 8000), ChunkSpec(16, 2, 2, 8)


@dataclass(frozen=True)
class Hyper:
    """One number."""

    width: int = 4


class Mask(nn.Module):
    """The least that separates: a mask by one layer. No statistics, no features, nothing else."""

    def __init__(self, spec: ModelSpec, hyper: Hyper):
        super().__init__()
        self.stems = len(spec.stems)
        self.layer = nn.Conv2d(2 * spec.channels, self.stems, 1)

    def forward(self, mixture: Any) -> Any:
        return mixture[:, None] * self.layer(mixture)[:, :, None].sigmoid()


class WrongShape(Mask):
    def forward(self, mixture: Any) -> Any:
        return super().forward(mixture)[:, 0]


class NoTensor(Mask):
    def forward(self, mixture: Any) -> Any:
        return [mixture]


class Breaks(Mask):
    def forward(self, mixture: Any) -> Any:
        return self.layer(mixture[..., 0])


class WrongArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()


class NoModule:
    def __init__(self, spec: ModelSpec, hyper: Hyper):
        pass


@pytest.fixture
def family(register: Callable[..., None]) -> Callable[[type[Any]], str]:
    """``family(Mask)``: the name of an installed family of that network."""

    def add(network: type[Any]) -> str:
        register(families, "theirs", Family("theirs", "for tests", Hyper, network, chunk=CHUNK, stft=STFT))
        return "theirs"

    return add


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (WrongShape, "gives [1, 4, 16, 256], the contract is [1, 2, 4, 16, 256]"),
        (NoTensor, "gives a list, the contract is"),
        (Breaks, "forward of mixture [1, 4, 16, 256] fails at"),
        (WrongArguments, "building the network from (spec, hyper) fails at"),
        (NoModule, "is a NoModule, not a torch.nn.Module"),
    ],
)
def test_a_network_that_breaks_the_contract(
    family: Callable[[type[Any]], str], tfx: Tfx, tmp_path: Path, network: type[Any], words: str
) -> None:
    name = family(network)
    with pytest.raises(ConfigError, match="family 'theirs'"):
        new_spec(name)
    done = tfx("new", name, "-o", tmp_path / "new.tfx")
    assert done.code == 2
    assert words in done.err
    assert len(done.lines) == 1
    assert not (tmp_path / "new.tfx").exists()


def settings(song_root: Path, *more: str) -> tuple[str, ...]:
    quick = ("optim.length=2", "optim.batch=1", "optim.frames=32", "optim.warmup=0", "data.workers=0")
    where = (f"data.root={song_root}", 'data.validation=["B"]', "run.validation_seconds=1")
    return ("model.family=theirs", *quick, *where, *more)


def test_forward_alone_is_enough_to_train_export_and_separate(
    family: Callable[[type[Any]], str], tfx: Tfx, song_root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: tfx export needs it")
    family(Mask)
    config = tmp_path / "mine.toml"
    config.touch()
    done = tfx("train", config, *settings(song_root), "-o", tmp_path / "run")
    assert done.code == 0, done.err
    best = tmp_path / "run" / "best.tfx"
    assert tfx("export", best).code == 0
    where = ("-m", best, "--backend", "ort", "-o", tmp_path / "out")
    assert tfx("separate", song_root / "A" / "vocals.wav", *where).code == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("pretrain.share=0.5", "data.sources={mixture=['vocals']}"), "no features and no reconstruct"),
        (("optim.checkpointing=true",), "no attribute 'checkpointing'"),
    ],
)
def test_what_only_some_trainings_need_is_asked_for_there(
    family: Callable[[type[Any]], str],
    tfx: Tfx,
    song_root: Path,
    tmp_path: Path,
    asked: tuple[str, ...],
    words: str,
) -> None:
    family(Mask)
    config = tmp_path / "mine.toml"
    config.touch()
    done = tfx("train", config, *settings(song_root, *asked), "-o", tmp_path / "run")
    assert done.code == 2
    assert words in done.err
    assert len(done.lines) == 1


def test_statistics_without_features_are_those_of_the_planes(
    family: Callable[[type[Any]], str], tfx: Tfx, song_root: Path, tmp_path: Path
) -> None:
    class Normalized(Mask):
        def __init__(self, spec: ModelSpec, hyper: Hyper):
            super().__init__(spec, hyper)
            self.register_buffer("mean", torch.zeros(spec.stft.bins))
            self.register_buffer("std", torch.ones(spec.stft.bins))

        def set_statistics(self, mean: Any, std: Any) -> None:
            self.mean.copy_(mean)
            self.std.copy_(std)

    family(Normalized)
    config = tmp_path / "mine.toml"
    config.touch()
    done = tfx("train", config, *settings(song_root), "-o", tmp_path / "run")
    assert done.code == 0, done.err
    from tfswa.runtime.model.bundle import Bundle

    weights = Bundle.open(tmp_path / "run" / "last.tfx").weights()
    assert weights["std"].max() < 0.5  # not the ones that it was built with
    network: Any = build_network(Bundle.open(tmp_path / "run" / "last.tfx").spec)
    assert network.std.min() == 1
