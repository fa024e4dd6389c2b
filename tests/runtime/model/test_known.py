"""The list of public models: every entry is checked, and so is the checking."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Tfx

from tfswa.runtime.errors import BundleError, UsageError
from tfswa.runtime.model import known as module
from tfswa.runtime.model.known import (
    DATA,
    KnownModel,
    known_by_digest,
    known_by_tail,
    known_model,
    known_models,
    parse_known,
)

MODELS = known_models()
ROFORMERS = [model for model in MODELS if model.architecture.endswith("roformer")]


@pytest.mark.parametrize("model", ROFORMERS, ids=lambda model: model.name)
def test_settings_of_a_roformer_suit_each_other(model: KnownModel) -> None:
    audio, network = model.config["audio"], model.config["model"]
    assert audio["hop_length"] == network["stft_hop_length"]
    assert audio["n_fft"] == network["stft_n_fft"] == network["stft_win_length"]
    assert network["dim_freqs_in"] == audio["n_fft"] // 2 + 1
    assert network["num_stems"] == len(model.stems)
    assert network["stereo"] == (audio["num_channels"] == 2)
    if model.architecture == "bs_roformer":
        assert sum(network["freqs_per_bands"]) == network["dim_freqs_in"]


def test_settings_of_the_others_suit_each_other() -> None:
    for model in MODELS:
        audio = model.config["audio"]
        assert audio["sample_rate"] == 44100
        if "dim_t" in audio:
            assert audio["chunk_size"] == audio["hop_length"] * (audio["dim_t"] - 1)
            assert audio["dim_f"] <= audio["n_fft"] // 2 + 1
        if model.architecture == "scnet":
            assert model.config["model"]["sources"] == model.stems


def test_names_that_people_type() -> None:
    for name in ("kim-vocals", "viperx-1297", "htdemucs", "htdemucs-ft", "uvr-mdx-voc-ft", "umxhq"):
        assert known_model(name).name == name
    kim = known_model("kim-vocals")
    assert (kim.target, kim.complement, kim.stems) == ("vocals", "accompaniment", ["vocals"])
    assert kim.size_mb == pytest.approx(913.1069)
    assert kim.source is not None
    assert kim.source.startswith("https://huggingface.co/KimberleyJSN/")
    four = known_model("htdemucs-ft")
    assert [file.stem for file in four.files] == list(four.stems)
    assert (four.target, four.size_mb) == (None, None)


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(UsageError, match="no known model 'kim_vocals', did you mean 'kim-vocals'"):
        known_model("kim_vocals")
    with pytest.raises(UsageError, match=r"no known model 'zzz': `tfx models --known` lists all \d+"):
        known_model("zzz")


def test_a_model_without_an_address_says_where_it_was() -> None:
    without = [model for model in MODELS if model.source is None]
    assert without
    assert all("formerly at https://" in model.listed for model in without)


def test_a_file_is_recognized_by_its_hash() -> None:
    kim = known_model("kim-vocals")
    found = known_by_digest(str(kim.files[0].sha256))
    assert found is not None
    assert (found.name, found.matched) == ("kim-vocals", "whole")
    assert known_by_digest("0" * 64) is None
    tail = known_by_tail("77d07b2667ddf05b9e3175941b4454a0")
    assert tail is not None
    assert tail.name == "uvr-mdx-voc-ft"
    assert known_by_tail("0" * 32) is None


def test_a_start_of_a_hash_is_flagged_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = one()
    entry["files"][0] = {"name": "a.ckpt", "sources": [], "sha256_start": "0123abcd"}
    listed = parse_known(whole(entry))
    monkeypatch.setattr(module, "known_models", lambda: listed)
    found = known_by_digest("0123abcd" + "0" * 56)
    assert found is not None
    assert found.matched == "start"
    assert known_by_digest("0123abce" + "0" * 56) is None


def test_what_is_given_is_the_callers_own() -> None:
    settings: Any = known_model("kim-vocals").config
    settings["model"]["dim"] = 1
    assert known_model("kim-vocals").config["model"]["dim"] == 384
    first, second = (known_models()[k].config["model"]["freqs_per_bands"] for k in (0, 2))
    first.append(1)
    assert second[-1] != 1


def one(**changed: Any) -> dict[str, Any]:
    file = {"name": "a.ckpt", "sources": ["https://a.example/a.ckpt"], "sha256": "0" * 64, "size_bytes": 5}
    training = {"instruments": ["vocals", "rest"], "target_instrument": "vocals"}
    return {
        "name": "a-1",
        "architecture": "bs_roformer",
        "stems": ["vocals"],
        "complement": "rest",
        "files": [file],
        "license": "MIT",
        "listed": "here",
        "config": {"audio": {"sample_rate": 44100}, "training": training},
        **changed,
    }


def whole(*entries: dict[str, Any], **changed: Any) -> str:
    return json.dumps({"version": 1, "defaults": {}, "models": list(entries), **changed})


def file(**changed: Any) -> dict[str, Any]:
    return one(files=[{**one()["files"][0], **changed}])


WRONG: dict[str, Callable[[], str]] = {
    "not an object of version": lambda: "{}",
    "its version is 2, this tfx reads 1": lambda: whole(one(), version=2),
    "name a-1 is there twice": lambda: whole(one(), file(sha256="1" * 64)),
    "SHA-256 000": lambda: whole(one(), one(name="b")),
    "MD5 000": lambda: whole(
        file(md5_tail="0" * 32), {**file(md5_tail="0" * 32, sha256="1" * 64), "name": "b"}
    ),
    "a-1 has an unknown key 'color'": lambda: whole(one(color=1)),
    "KnownFile has an unknown key 'url'": lambda: whole(file(url="x")),
    "its name is not small": lambda: whole(one(name="A 1")),
    "its architecture is no word": lambda: whole(one(architecture="BS RoFormer")),
    "training.instruments are not its stems": lambda: whole(one(complement="other")),
    "training.target_instrument is not": lambda: whole(
        one(config={"audio": {"sample_rate": 1}, "training": {"instruments": ["vocals", "rest"]}})
    ),
    "a complement is what one stem leaves": lambda: whole(one(stems=["vocals", "bass"])),
    "it has no files": lambda: whole(one(files=[])),
    "files for stems do not follow them": lambda: whole(file(stem="bass")),
    "license or listed is empty": lambda: whole(one(license="")),
    "audio has no sample rate": lambda: whole(one(config={"training": one()["config"]["training"]})),
    "a section 'augmentations'": lambda: whole(one(config={"augmentations": {}})),
    "is no https address": lambda: whole(file(sources=["http://a.example/a.ckpt"])),
    "https://a.example is no https address": lambda: whole(file(sources=["https://a.example"])),
    "is no plain name": lambda: whole(file(name="../a.ckpt")),
    "sha256 00FF has not 64": lambda: whole(file(sha256="00FF")),
    "has not 8 small": lambda: whole(file(sha256=None, sha256_start="0" * 9)),
    "keep the whole": lambda: whole(file(sha256_start="0" * 8)),
    "has 0 bytes": lambda: whole(file(size_bytes=0)),
    "its score is of no page": lambda: whole(
        one(score={"sdr_db": {"vocals": 1.0}, "songs": "x", "published": "a book"})
    ),
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_wrong_entry_is_refused(problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        parse_known(WRONG[problem]())
    assert "\n" not in str(caught.value)


def test_a_damaged_list_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "known.json").write_text("{")
    monkeypatch.setattr(module, "DATA", tmp_path / "known.json")
    with pytest.raises(BundleError, match=r"known\.json is damaged \(.+\): install tfx again"):
        known_models()


def test_the_list_is_printed_without_torch_and_without_a_network(
    tfx: Tfx, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = tfx("models", "--known")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(MODELS)]] == [model.name for model in MODELS]
    assert f"{len(MODELS)} models; 1 without an address: unwa-large-v1;" in done.out
    printed = json.loads(tfx("models", "--known", "--json").out)["known"]
    stored = {entry["name"]: entry for entry in json.loads(DATA.read_text())["models"]}
    assert {entry["name"] for entry in printed} == stored.keys()
    for entry in printed:
        assert entry["license"] == stored[entry["name"]]["license"]
        assert len(entry["files"]) == len(stored[entry["name"]]["files"])


def test_the_page_counts_them() -> None:
    page = (Path(__file__).parents[3] / "docs" / "import.md").read_text(encoding="utf-8")
    unchecked = sum(not all(file.sha256 for file in model.files) for model in MODELS)
    assert f"has {len(MODELS)} checkpoints" in page
    assert f"Of {unchecked} models it is not known" in page
