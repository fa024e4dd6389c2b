"""Every file that commands leave is of a known kind: a test shows what binds it, or nothing reads it.

The commands run, and all that they left is looked at: a file of a new kind fails here until it is listed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import Tfx
from writing_commands import CALIBRATE, EVALUATE, EXPORT, NEW, PARITY, SEPARATE, TRAIN, furnish

from tfswa.runtime.files import seal
from tfswa.runtime.files.caches import ALL

HERE = Path(__file__).parent
FLIPPED = "test_one_flipped_byte.py"
GIVEN = "what the commands read"
OUTPUT = "an output: tfx does not read it again"
FIGURES = "figures for people: a resumed run goes on in them and believes none"

KEPT = {  # what a path looks like: the test that shows what binds it, or why none is needed
    r"work/(songs/.*|song\.wav|tiny\.toml|some\.whl|key\.pem|key\.pub)": GIVEN,
    r".*\.tfx/manifest\.json": "test_the_manifest_of_a_bundle",
    r".*\.tfx/parity\.json": "test_the_evidence_of_a_bundle",
    r".*\.tfx/[^/]+\.(safetensors|onnx|ts|json|npz|sig)": "test_a_file_of_a_bundle",
    r".*\.tfx/engines/[^/]+": "test_a_file_of_a_bundle",
    r"work/alone\.(onnx|ts)": "test_a_lone_exported_file",
    r"work/alone\.pt2": "test_a_lone_package",
    r"work/calibration\.npz": "test_chunks_to_calibrate_on",
    r"work/out/.*\.wav": OUTPUT,
    r"work/(p\.md|rows\.(json|md|png)|.*\.png|.*\.csv|.*\.html|report\.xml)": OUTPUT,
    r"work/scores/songs/[^/]+\.json": "test_the_record_of_an_evaluated_song",
    r"work/scores/results\.json": "an output, but for its identity: another is refused by name",
    r"work/run/\.lock": "empty: a process holds it",
    r"(work|cache)/.*decoded/leases/.*": "says what a living training uses; without it, nothing is used",
    r"work/run/config\.json": "test_the_config_of_a_run",
    r"work/run/checkpoints/[0-9]+\.ckpt": "test_a_checkpoint",
    r"work/run/(log|validation)\.csv": FIGURES,
    r"work/run/events\.out\.tfevents\..*": OUTPUT,
    r"work/run/pretrained\.safetensors": "test_weights_of_a_pre_training",
    r"work/timings": "test_timings_of_tensorrt",
    r"(work|cache)/.*decoded/[0-9a-f]+\.npy": "test_decoded_audio",
    r"cache/tfswa/bundles/[^/]+/manifest\.json": "test_what_was_added_to_a_sealed_bundle",
    r"cache/tfswa/bundles/[^/]+/.+": "test_what_was_added_to_a_sealed_bundle",
    r"cache/tfswa/(openvino|onnxruntime)/[^/]+/.+": "test_a_compiled_network",
    r"cache/tfswa/calibration/ranges/[^/]+": "test_ranges_of_a_calibration",
    r"cache/tfswa/calibration/plans/[^/]+": "test_losses_of_a_calibration",
    r"cache/tfswa/auto/[^/]+": "test_the_table_of_auto",
    r"cache/tfswa/parity/[^/]+": "test_measurements_of_a_stopped_parity",
    r"cache/tfswa/downloads/[^/]+": "test_what_was_downloaded",
    r"state/tfswa/key": "test_the_key_of_this_machine",
    r"state/tfswa/vouched": "test_the_list_of_what_was_made_here",
}


def bound_by(path: str) -> str | None:
    """What is said of a kind of file; of several, the first that fits."""
    return next((why for pattern, why in KEPT.items() if re.fullmatch(pattern, path)), None)


def test_every_test_that_is_named_is_there() -> None:
    there = set(re.findall(r"^def (test_\w+)\(", (HERE / FLIPPED).read_text(), re.MULTILINE))
    named = {why for why in KEPT.values() if why.startswith("test_")}
    assert named <= there
    assert there - named == {"test_the_journal_of_a_publish_that_was_killed"}  # no command leaves one


def test_every_kind_of_cache_is_listed() -> None:
    for kind in ALL:
        assert any(kind in pattern for pattern in KEPT), kind


@pytest.mark.slow
def test_every_file_that_commands_leave_is_of_a_kind_that_is_known(
    exported_bundle: Path, song_root: Path, tmp_path: Path, tfx: Tfx, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("torch", "onnx", "onnxruntime", "openvino", "lightning_fabric", "tensorboard"):
        pytest.importorskip(library, reason=f"{library} is not installed: commands leave what it writes, too")
    work = tmp_path / "work"
    work.mkdir()
    furnish(work, exported_bundle, song_root, 2)
    for name, place in (
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_CONFIG_HOME", "config"),
    ):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setattr(seal, "_here", set())
    seal._key.cache_clear()
    monkeypatch.chdir(work)
    commands: list[tuple[str, ...]] = [
        NEW,
        EXPORT,
        SEPARATE,
        ("separate", "song.wav", "-m", "mine.tfx", "-o", "out/b", "--backend", "openvino"),
        (*CALIBRATE, "--keep", "calibration.npz"),
        (*PARITY, "--junit", "report.xml"),
        EVALUATE,
        TRAIN,
        ("bench", "mine.tfx", "--auto", "--audio", "song.wav", "--backend", "ort", "-o", "rows"),
    ]
    for command in commands:
        done = tfx(*command)
        assert done.code in ((0, 3) if command[0] == "parity" else (0,)), (command, done.err)
    left = sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()
    )
    assert [path for path in left if bound_by(path) is None] == []
    seen = {bound_by(path) for path in left}
    assert len(seen) > 12, seen
    print(f"{len(left)} files of {len(seen)} kinds")
