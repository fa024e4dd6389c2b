"""``tfx import FILE`` of published networks: what is recognized, what is asked for, and what is refused."""

from __future__ import annotations

import functools
import json
import re
import sys
import threading
from collections.abc import Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model import known as known_list
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import OUTPUT
from tfswa.runtime.stream.codec import Codec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")
from safetensors.torch import save_file  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from known_numbers import known  # noqa: E402
from make_roformer import BS, FILE, MEL, MEL_SAMPLES, SAMPLES, STRIDE  # noqa: E402

from tfswa.train.backend import load_network  # noqa: E402
from tfswa.train.importers.kinds import Kind, recognized  # noqa: E402
from tfswa.train.importers.published import MAX_BYTES, read_yaml  # noqa: E402

CLOSE = 1e-4  # of the peak: the same operations in float32, in another order
HOP = {**dict.fromkeys(BS, 16), **dict.fromkeys(MEL, 441)}
YAML = """
audio: {{chunk_size: {chunk}, num_channels: 2, sample_rate: 44100}}
model:
  stft_hop_length: {hop}
  zero_dc: {zero_dc}
  freqs_per_bands: !!python/tuple
  - 2
  - 2
training:
  instruments: [vocals, other]
  target_instrument: {target}
inference: {{batch_size: 1, num_overlap: 4}}
"""


def own(case: str) -> dict[str, Any]:
    return {**BS, **MEL}[case]


def yaml_of(case: str, path: Path) -> Path:
    """A configuration as the training suite writes it."""
    one = own(case).get("num_stems", 1) == 1
    samples = SAMPLES if case in BS else MEL_SAMPLES
    zero_dc = str(own(case).get("zero_dc", False)).lower()
    text = YAML.format(chunk=samples, hop=HOP[case], zero_dc=zero_dc, target="vocals" if one else "null")
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def states() -> Mapping[str, dict[str, Any]]:
    """State dictionaries by case, as the package ``bs-roformer`` has them: names, shapes, known numbers."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(FILE) as vectors:
        for case in (*BS, *MEL):
            shapes = zip(vectors[f"{case}_keys"], vectors[f"{case}_shapes"], strict=True)
            sizes = {str(key): tuple(int(n) for n in shape if n) for key, shape in shapes}
            found[case] = {
                key: torch.from_numpy(known(key, shape))
                for key, shape in sizes.items()
                if not key.endswith("freqs")
            }
    return found


@pytest.mark.parametrize("case", [*BS, *MEL])
def test_a_published_file_becomes_a_bundle_that_gives_what_its_package_gives(
    tfx: Tfx, tmp_path: Path, states: Mapping[str, dict[str, Any]], case: str
) -> None:
    wrapped = {f"module.{name}": value for name, value in states[case].items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "theirs.ckpt")
    config = yaml_of(case, tmp_path / "theirs.yaml")
    line = ("import", tmp_path / "theirs.ckpt", "--config", config, "-o", tmp_path / "a.tfx", "--json")
    told = tfx(*line).json
    assert (told["key"], told["prefix"], told["left_out"]) == ("state_dict", "module.", [])
    model = open_model(tmp_path / "a.tfx")
    spec = model.spec
    assert (spec.stems, spec.weights_license) == (("vocals", "other"), "not stated")
    assert spec.outputs == (("vocals",) if own(case).get("num_stems", 1) == 1 else ("vocals", "other"))
    assert spec.chunk_samples == (SAMPLES if case in BS else MEL_SAMPLES)
    chunk = known("audio", (1, spec.channels, spec.chunk_samples), 0.1)
    codec = Codec(spec)
    spectra = codec.spectra(chunk)
    with torch.no_grad():
        out = load_network(model)(torch.from_numpy(codec.tensors(chunk, spectra)["mixture"]))
    stems = codec.stems(chunk[0], spectra[0], {OUTPUT: out.numpy()[0]})[: len(spec.outputs), :, ::STRIDE]
    with np.load(FILE) as vectors:
        right = vectors[case]
    assert np.abs(stems - right).max() <= CLOSE * np.abs(right).max()
    assert model.bundle is not None
    provenance = model.bundle.provenance
    assert (provenance["kind"], provenance["checkpoint"]) == ("RoFormer", "theirs.ckpt")


def test_what_weights_do_not_tell_is_asked_for_in_one_line(
    tfx: Tfx, tmp_path: Path, states: Mapping[str, dict[str, Any]]
) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(states["bs"], path)
    line = ("import", path, "-o", tmp_path / "a.tfx")
    done = tfx(*line)
    assert (done.code, done.out) == (2, "")
    assert done.lines == [
        f"tfx: {path} is a RoFormer of 2 stems; its weights do not tell the hop of the transform and the "
        "names of the stems: add --config YAML, or --stft hop=441 --stems vocals,drums"
    ]
    done = tfx(*line, "--stft", "hop=16", "--stems", "a,b,c,d")
    assert done.code == 2
    assert "4 stems are named (a, b, c, d), the network gives 2: name 2, or 3, of which" in done.err
    assert not (tmp_path / "a.tfx").exists()
    chunk = ("--chunk", "frames=40", "--license", "MIT", "--hyper", "skips=true")
    assert tfx(*line, "--stft", "hop=16", "--stems", "a,b", *chunk).code == 0
    spec = Bundle.open(tmp_path / "a.tfx").spec
    assert (spec.stems, spec.outputs, spec.stft.hop, spec.chunk.frames) == (("a", "b"), ("a", "b"), 16, 40)
    assert (spec.weights_license, spec.hyper["skips"], spec.hyper["widths"]) == (
        "MIT",
        True,
        [2, 2, 4, 8, 17],
    )


def test_a_single_stem_leaves_another_one(
    tfx: Tfx, tmp_path: Path, states: Mapping[str, dict[str, Any]]
) -> None:
    torch.save(states["mel"], tmp_path / "a.ckpt")
    line = ("import", tmp_path / "a.ckpt", "--stft", "hop=441", "--chunk", "frames=20", "--force")
    for given, stems in (
        ("vocals", ("vocals", "accompaniment")),
        ("dry", ("dry", "no_dry")),
        ("dry,wet", ("dry", "wet")),
    ):
        assert tfx(*line, "--stems", given, "-o", tmp_path / "a.tfx").code == 0
        spec = Bundle.open(tmp_path / "a.tfx").spec
        assert (spec.stems, spec.outputs, spec.residual_stem) == (stems, stems[:1], stems[1])


def test_half_precision_and_wrappers_of_a_compiler(
    tfx: Tfx, tmp_path: Path, states: Mapping[str, dict[str, Any]]
) -> None:
    half = {f"_orig_mod.model.{name}": value.half() for name, value in states["bs"].items()}
    half["loss.window"] = torch.ones(3)
    torch.save({"model_state_dict": half, "best": 9.1}, tmp_path / "a.th")
    config = yaml_of("bs", tmp_path / "a.YML")
    done = tfx("import", tmp_path / "a.th", "--config", config, "-o", tmp_path / "a.tfx")
    assert (done.code, done.err) == (0, "")
    assert "prefix 'model.' removed" in done.out
    assert "1 left out: loss.window" in done.out
    weights = Bundle.open(tmp_path / "a.tfx").weights()
    right = states["bs"]["final_norm.gamma"].half().float().numpy()
    np.testing.assert_array_equal(weights["final_norm.gamma"], right)


def test_weights_of_another_shape_are_a_table(
    tfx: Tfx, tmp_path: Path, states: Mapping[str, dict[str, Any]]
) -> None:
    state = dict(states["bs"])
    first = next(name for name in state if name.endswith("to_gates.bias"))
    state[first.replace("to_gates", "to_gate")] = state.pop(first)
    other = next(name for name in state if name.endswith("net.4.bias"))
    state[other] = state[other][:-1]
    torch.save(state, tmp_path / "a.ckpt")
    done = tfx("import", tmp_path / "a.ckpt", "--config", yaml_of("bs", tmp_path / "a.yaml"))
    assert (done.code, done.out) == (1, "")
    assert done.lines[0].split() == ["misfit", "name", "in", "the", "file", "in", "the", "network", "nearest"]
    assert [line.split("  ")[0] for line in done.lines[2:-1]] == ["missing", "another shape", "unexpected"]
    assert "to_gate.bias" in done.lines[2]  # the nearest of what is in the file
    assert "1 missing" in done.lines[-1]
    assert not list(tmp_path.glob("*.tfx"))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("mask_estimators.0.segm.0.weight", torch.zeros(2), "with a HyperACE mask head"),
        ("mask_estimators.0.fno.weight", torch.zeros(2), "with a mask head of its own"),
        (
            "layers.0.0.layers.0.0.rotary_embed.freqs",
            torch.full((8,), 0.5),
            "is 0.5, 0.5, 0.5 and 5 more, in a",
        ),
    ],
)
def test_what_is_another_network_is_said(
    tfx: Tfx, tmp_path: Path, states: Mapping[str, dict[str, Any]], name: str, value: Any, says: str
) -> None:
    torch.save({**states["bs"], name: value}, tmp_path / "a.ckpt")
    done = tfx("import", tmp_path / "a.ckpt", "--config", yaml_of("bs", tmp_path / "a.yaml"))
    assert (done.code, len(done.lines)) == (1, 1)
    assert says in done.err
    assert name in done.err


def test_a_file_of_no_known_network(tfx: Tfx, tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "a.ckpt")
    done = tfx("import", tmp_path / "a.ckpt")
    assert done.lines == [
        f"tfx: {tmp_path / 'a.ckpt'} holds weights of no published network that is known here "
        "(encoder.weight): name the network's --family, or its training --config"
    ]
    assert done.code == 2
    part = tmp_path / "model-00001-of-00003.safetensors"
    save_file({"a": torch.zeros(1)}, part)
    assert tfx("import", part).lines == [f"tfx: {part} is part 1 of 3: save all of its weights as one file"]
    for words, says in (
        ((tmp_path / "a.ckpt", "--channels", "1"), "--channels is for --family"),
        ((tmp_path / "a.ckpt", "--family", "x", "--config", "x.yaml"), "leave one out"),
        ((tmp_path / "a.ckpt", "--file", part), "are for a NAME"),
        (("spleeter", "--stems", "a,b"), "--stems is for a FILE"),
        (("kim-vocals.ckpt",), "kim-vocals.ckpt: no such file"),
        (("kim-vocal",), "no known model 'kim-vocal', did you mean 'kim-vocals'"),
    ):
        done = tfx("import", *words)
        assert (done.code, done.out) == (2, ""), words
        assert says in done.lines[-1], words


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: Mapping[str, dict[str, Any]]) -> Path:
    """A file of weights, and a list of known models with it."""
    path = tmp_path / "theirs.ckpt"
    torch.save(states["bs"], path)
    model = {
        "name": "small-one",
        "architecture": "bs_roformer",
        "stems": ["vocals", "other"],
        "files": [
            {
                "name": "theirs.ckpt",
                "sources": ["https://models.invalid/a/theirs.ckpt"],
                "sha256": sha256_of(path),
                "size_bytes": path.stat().st_size,
            }
        ],
        "license": "MIT",
        "listed": "here",
        "config": {
            "audio": {"chunk_size": SAMPLES, "sample_rate": 44100},
            "model": {"stft_hop_length": 16},
            "training": {"instruments": ["vocals", "other"], "target_instrument": None},
        },
    }
    strange = {**model, "name": "strange-one", "extras": ["hyperace_v9"]}
    strange["files"] = [{"name": "b.ckpt", "sources": ["https://models.invalid/b.ckpt"]}]
    several = {**strange, "name": "several", "extras": [], "files": [*strange["files"], *strange["files"]]}
    text = json.dumps({"version": 1, "defaults": {}, "models": [model, strange, several]})
    (tmp_path / "known.json").write_text(text)
    monkeypatch.setattr(known_list, "DATA", tmp_path / "known.json")
    return path


def test_a_file_that_is_on_the_list_needs_no_configuration(tfx: Tfx, tmp_path: Path, listed: Path) -> None:
    renamed = listed.rename(tmp_path / "download (1)")
    for line in (
        ("import", renamed, "-o", tmp_path / "a.tfx"),
        ("import", "small-one", "--file", renamed, "-o", tmp_path / "b.tfx"),
    ):
        assert tfx(*line).code == 0, line
        bundle = Bundle.open(line[-1])
        assert (bundle.spec.stft.hop, bundle.spec.stems) == (16, ("vocals", "other"))
        assert (bundle.spec.chunk_samples, bundle.spec.weights_license) == (SAMPLES, "MIT")
        assert bundle.provenance["known"] == "small-one"
        assert bundle.provenance["source"] == "https://models.invalid/a/theirs.ckpt"
    done = tfx("import", renamed, "--license", "CC0-1.0", "--stems", "a,b", "-o", tmp_path / "c.tfx")
    assert done.code == 0
    spec = Bundle.open(tmp_path / "c.tfx").spec
    assert (spec.stems, spec.weights_license, spec.stft.hop) == (("a", "b"), "CC0-1.0", 16)


def test_a_name_is_fetched_from_a_mirror_and_can_be_used(
    tfx: Tfx, tmp_path: Path, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served" / "a"
    served.mkdir(parents=True)
    listed.rename(served / "theirs.ckpt")
    monkeypatch.delenv("TFX_MIRROR", raising=False)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}"
        told = tfx("import", "small-one", "--mirror", mirror, "--json").json
        server.shutdown()
    assert (told["family"], told["stems"]) == ("roformer", ["vocals", "other"])
    assert "small-one" in [model["model"] for model in tfx("models", "--json").json["models"]]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("small-on",), 2, "did you mean 'small-one'"),
        (("small-one", "--stems", "a,b"), 2, "--stems is for a FILE"),
        (("strange-one",), 1, "strange-one has hyperace_v9, which is not known here"),
        (("several", "--file", "theirs.ckpt"), 2, "several is 2 files (b.ckpt, b.ckpt), given is 1: name"),
        (("small-one", "--file", "known.json"), 1, "wanted"),
        (("theirs.ckpt", "--mirror", "https://x.y"), 2, "--file and --mirror are for a NAME"),
    ],
)
def test_names_that_cannot_be_imported(
    tfx: Tfx,
    tmp_path: Path,
    listed: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    assert listed.is_file()
    monkeypatch.chdir(tmp_path)
    done = tfx("import", *words)
    assert (done.code, done.out) == (code, "")
    assert says in done.lines[-1]
    assert not list(tmp_path.glob("*.tfx"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !!python/object/apply:os.mkdir [owned]", "could not determine a constructor for the tag"),
        ("a: !!python/name:os.system ''", "could not determine a constructor for the tag"),
        ("a: [1, 2", "expected ',' or ']', but got '<stream end>', in line 1"),
        ("- 1\n- 2", "holds a list: a configuration is a table"),
        ("", "holds a NoneType"),
        ("a: \x00", "special characters are not allowed"),
        ("[" * 5000, "is no YAML that is read here"),
        ("a: " + "x" * MAX_BYTES, "is longer than"),
        ("2020-99-99: 1", "month must be in 1..12"),
    ],
)
def test_a_configuration_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml") as error:
        read_yaml(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("  stft_hop_length: fast", "stft.hop.*fast"),
        ("  stft_hop_length: 0", "hop 0 must be int, above 0"),
        ("  stft_n_fft: 128", "stft_n_fft 128 of the configuration does not give such bands"),
        ("  stft_n_fft: long", "model.stft_n_fft 'long' of the configuration must be an integer above 0"),
        ("  skip_connection: 1", "model.skip_connection 1 of the configuration must be true or false"),
        ("  sample_rate: no", "model.sample_rate False of the configuration must be an integer above 0"),
    ],
)
def test_a_configuration_that_contradicts(
    tfx: Tfx, tmp_path: Path, states: Mapping[str, dict[str, Any]], line: str, says: str
) -> None:
    torch.save(states["bs"], tmp_path / "a.ckpt")
    config = yaml_of("bs", tmp_path / "a.yaml")
    key = line.split(":")[0]
    kept = [text for text in config.read_text().splitlines() if not text.startswith(key + ":")]
    kept.insert(kept.index("model:") + 1, line)
    config.write_text("\n".join(kept))
    done = tfx("import", tmp_path / "a.ckpt", "--config", config, "-o", tmp_path / "a.tfx")
    assert (done.code, done.out, len(done.lines)) == (2, "", 1)
    assert re.search(says, done.err), done.err
    assert not (tmp_path / "a.tfx").exists()


def test_wrappers_are_tried_from_the_outside_in() -> None:
    names = [f"model.module.{name}" for name in ("band_split.to_features.0.", "mask_estimators.0.", "x")]
    assert recognized([*names, "model.module.layers.0.0.layers.0.0.norm"]) is not None
    assert recognized(names) is None
    found = recognized(["layers.0.1.layers.0.0.x", "mask_estimators.0.x", "band_split.to_features.0.x"])
    assert found is not None
    assert found[1] == ""
    assert isinstance(found[0], Kind)
