"""The Triton backend against a small server that runs the exported graph: the same stems, and every refusal.

Equality of bits holds where the server is asked for one chunk at a time: the same graph in the same library,
with the same kernels on one thread. Where chunks share a call, ONNX Runtime may round otherwise: ``GATE_DB``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Tfx

pytest.importorskip("torch", reason="torch is not installed: networks are exported with it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: networks are exported with it")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed: it has Triton's protocol")

import grpc
import triton_server
from google.protobuf.message import Message
from triton_server import TritonFake

from tfswa.export.triton import Serving, export_triton
from tfswa.runtime.backends import BackendOptions, certified_device, open_session
from tfswa.runtime.backends import triton as backend
from tfswa.runtime.backends.triton_server import ServerAddress
from tfswa.runtime.errors import BackendUnavailable, GateError, NonFiniteError, UsageError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import INPUT, OUTPUT, ChunkSpec, StftSpec
from tfswa.runtime.parity.evidence import passing, require_passing
from tfswa.runtime.stream.separator import Separator

GATE_DB = 110.0  # of float32 rounding in sums of another order, as in test_openvino
RATE = 8000


@dataclass(frozen=True)
class At:
    """A server, what it serves, and where."""

    fake: TritonFake
    model: BundleModel
    port: int

    @property
    def device(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    @property
    def options(self) -> BackendOptions:
        return BackendOptions(device=self.device)

    def open(self, **changes: Any) -> backend.TritonSession:
        session = open_session("triton", self.model, BackendOptions(**{"device": self.device, **changes}))
        assert isinstance(session, backend.TritonSession)
        return session


Serve = Callable[..., At]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a proxy, gRPC would ask it for servers of this machine too."""
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1,localhost")


@pytest.fixture
def serve(exported: BundleModel, tmp_path: Path) -> Iterator[Serve]:
    """``serve(model, max_batch=...)``: a server of a model, by default of the tiny one."""
    started: list[tuple[Any, TritonFake]] = []

    def start(model: BundleModel = exported, credentials: Any = None, **serving: Any) -> At:
        repository = tmp_path / f"repository {len(started)}"
        export_triton(model, repository, Serving(**serving))
        fake = TritonFake(repository)
        server, port = fake.start(credentials)
        started.append((server, fake))
        return At(fake, model, port)

    yield start
    for server, fake in started:
        fake.close()
        server.stop(None).wait()


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Two seconds of noise, in a file with a letter beyond ASCII."""
    path = tmp_path / "Stück 1.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * RATE, 2)).astype(np.float32)
    soundfile.write(path, noise, RATE, subtype="FLOAT")
    return path


def mixture(seconds: float = 2.0) -> Any:
    return np.random.default_rng(1).uniform(-0.5, 0.5, (2, round(seconds * RATE))).astype(np.float32)


def planes(at: At, items: int) -> dict[str, Any]:
    random = np.random.default_rng(2)
    return {INPUT: random.standard_normal(at.model.spec.input_shape(items)).astype(np.float32)}


def change(at: At, key: str, value: str) -> None:
    (config,) = (served.config for served in at.fake.models.values())
    config.parameters[key].string_value = value


def line_of(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestSeparating:
    def test_a_file_gets_the_stems_of_ort_to_the_bit(self, serve: Serve, song: Path, tfx: Tfx) -> None:
        at = serve(max_batch=1)
        for name, how in (("ort", ("--threads", "1")), ("triton", ("--device", at.device))):
            done = tfx(
                "separate", song, "-m", at.model.name, "--backend", name, *how, "-o", song.parent / name
            )
            assert done.code == 0, done.err
        for stem in ("vocals", "accompaniment"):
            one, two = (song.parent / name / song.stem / f"{stem}.wav" for name in ("ort", "triton"))
            assert one.read_bytes() == two.read_bytes()
        assert np.abs(soundfile.read(one)[0]).max() > 0
        assert set(at.fake.models["mine"].runs) == {1}
        assert "Triton 2.99.0 at 127.0.0.1" in done.err

    def test_larger_batches_are_split_and_come_back_in_order(self, serve: Serve) -> None:
        at = serve(max_batch=3, queue_delay_ms=0)
        with_ort = open_session("ort", at.model, BackendOptions(threads=1))
        session, given = at.open(), planes(at, 20)
        found, right = session.infer(given)[OUTPUT], with_ort.infer(given)[OUTPUT]
        runs = at.fake.models["mine"].runs
        assert (max(runs), sum(runs)) == (3, 20)
        for one, two in zip(found, right, strict=True):
            assert snr_db(two, one) is None or snr_db(two, one) > GATE_DB
        assert at.fake.asked.count("ModelInfer") == 7
        found[:] = 0  # a result is the caller's to write to
        session.close()
        session.close()

    def test_no_more_than_a_few_requests_are_under_way(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at = serve(max_batch=1)
        session, under_way, most = at.open(), 0, 0
        begin, end = session._server.begin, session._server.end

        def counted_begin(method: str, *rest: Any) -> Any:
            nonlocal under_way, most
            under_way += method == "ModelInfer"
            most = max(most, under_way)
            return begin(method, *rest)

        def counted_end(call: Any, method: str, *rest: Any) -> Any:
            nonlocal under_way
            under_way -= method == "ModelInfer"
            return end(call, method, *rest)

        monkeypatch.setattr(session._server, "begin", counted_begin)
        monkeypatch.setattr(session._server, "end", counted_end)
        assert session.infer(planes(at, 9))[OUTPUT].shape[0] == 9
        assert (most, under_way) == (backend.IN_FLIGHT, 0)

    def test_chunks_of_several_callers_share_a_call(self, serve: Serve) -> None:
        """The queue of ``config.pbtxt``: a call goes out at a preferred size, long before the delay ends."""
        at = serve(max_batch=2, queue_delay_ms=10_000.0)
        sessions, found = [at.open(), at.open()], dict[int, Any]()
        given = [planes(at, 1), {INPUT: planes(at, 2)[INPUT][1:]}]

        def ask(index: int) -> None:
            found[index] = sessions[index].infer(given[index])[OUTPUT]

        threads = [threading.Thread(target=ask, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert at.fake.models["mine"].runs == [2]
        with_ort = open_session("ort", at.model, BackendOptions(threads=1))
        for index in (0, 1):
            assert snr_db(with_ort.infer(given[index])[OUTPUT], found[index]) > GATE_DB  # type: ignore[operator]

    def test_the_output_is_the_same_in_every_batch(self, serve: Serve) -> None:
        at = serve(max_batch=2)
        with Separator(at.model, backend="triton", options=at.options) as alone:
            one = alone.separate(mixture())
            two = alone.with_batch(5).separate(mixture())
        assert snr_db(one, two) is None or snr_db(one, two) > GATE_DB  # type: ignore[operator]

    def test_float16_ends(self, low_io: BundleModel, serve: Serve) -> None:
        at = serve(low_io, precision="fp16", max_batch=1)
        with Separator(low_io, backend="triton", options=BackendOptions("fp16", at.device)) as triton:
            found = triton.separate(mixture())
        with Separator(low_io, backend="ort", options=BackendOptions("fp16", threads=1)) as ort:
            right = ort.separate(mixture())
        # The server leaves out all passes of the last level, ort that to blocked layouts: the gate of fp16.
        assert snr_db(right, found) > 45.0  # type: ignore[operator]

    def test_state_is_handed_from_chunk_to_chunk(self, causal: BundleModel, serve: Serve) -> None:
        at = serve(causal, max_batch=1)
        with Separator(causal, backend="triton", options=at.options) as triton:
            found = triton.separate(mixture(1.0))
        with Separator(causal, backend="ort", options=BackendOptions(threads=1)) as ort:
            right = ort.separate(mixture(1.0))
        assert len(at.fake.models["causal"].runs) > 2
        np.testing.assert_array_equal(found, right)

    def test_a_file_alone_runs_on_a_server(self, serve: Serve, tmp_path: Path) -> None:
        at = serve()
        shutil.copy(at.model.bundle.path / "model.onnx", tmp_path / "mine.onnx")
        session = open_session("triton", open_model(tmp_path / "mine.onnx"), at.options)
        assert session.artifact[0] == "mine.onnx"
        session.close()

    def test_an_engine_is_known_by_its_hash(self, serve: Serve) -> None:
        at = serve()
        path = at.model.bundle.add("engines/a.engine", b"plan", kind="engine", precision="fp32")
        change(at, "tfx.sha256", Bundle.open(at.model.bundle.path).files["engines/a.engine"].sha256)
        assert at.open().artifact[0] == "engines/a.engine"
        path.unlink()

    def test_tls(self, serve: Serve, song: Path, tmp_path: Path) -> None:
        """In a process of its own: gRPC reads its roots once."""
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        line = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ]
        line += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]  # type: ignore[list-item]
        subprocess.run(line, check=True, capture_output=True)
        pair = (key.read_bytes(), certificate.read_bytes())
        at = serve(credentials=grpc.ssl_server_credentials([pair]))
        secure = f"grpcs://localhost:{at.port}"
        for device, roots, code in ((secure, certificate, 0), (secure, None, 4), (at.device, certificate, 4)):
            known = {} if roots is None else {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(roots)}
            command = ("separate", song, "-m", at.model.name, "--backend", "triton", "--device", device)
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tfswa.runtime",
                    *map(str, command),
                    "-o",
                    str(tmp_path / "out"),
                    "--force",
                ],
                env={**os.environ, **known},
                capture_output=True,
                text=True,
            )
            assert done.returncode == code, done.stderr
            assert len(done.stderr.splitlines()) <= 2, done.stderr


@pytest.fixture
def low_io(plain_bundle: Path, tmp_path: Path) -> BundleModel:
    """float16 from end to end."""
    from tfswa.export.onnx import export_onnx

    shutil.copytree(plain_bundle, tmp_path / "low.tfx")
    export_onnx(open_model(tmp_path / "low.tfx"), precision="fp16", low_io=True)
    model = open_model(tmp_path / "low.tfx")
    assert isinstance(model, BundleModel)
    return model


@pytest.fixture
def causal(tmp_path: Path) -> BundleModel:
    """A network with state."""
    from tfswa.train.backend import new_bundle

    hyper: dict[str, Any] = {"dims": [8, 16], "depths": [1, 2], "decoder_depths": [1], "heads": [1, 2]}
    hyper |= {"memory": 12, "window": 4, "fold": 4}
    chunk = ChunkSpec(20, context=3, fade=0, multiple=1, context_after=3, early=2)
    path = tmp_path / "causal.tfx"
    new_bundle("tfswa_causal", path, seed=3, hyper=hyper, stft=StftSpec(512, 128, RATE), chunk=chunk)
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model


class TestRefusals:
    def test_a_server_that_is_not_there(self, exported: BundleModel, song: Path, tfx: Tfx) -> None:
        line = ("-m", exported.name, "--backend", "triton", "--device", "grpc://127.0.0.1:9")
        done = tfx("separate", song, *line, "-o", song.parent / "out")
        assert done.code == 4
        (said,) = done.lines
        assert said.startswith("tfx: no Triton server answers at 127.0.0.1:9 (")
        assert said.endswith("): start it, or check --device")
        assert not (song.parent / "out").exists()

    @pytest.mark.parametrize("flag", ["live", "ready"])
    def test_one_that_is_not_ready(self, flag: str, serve: Serve) -> None:
        at = serve()
        setattr(at.fake, flag, False)
        with pytest.raises(BackendUnavailable, match="is up and not ready"):
            at.open()

    def test_a_model_that_it_does_not_serve(self, serve: Serve) -> None:
        at = serve(name="other")
        with pytest.raises(BackendUnavailable) as caught:
            at.open()
        assert "has no model 'mine' ready, it serves other (Request for unknown model" in line_of(caught)
        assert at.open(device=f"{at.device}/other").artifact[0] == "model.onnx"

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("tfx.spec", "f" * 64, r"is of spec ffffffffffff, .*mine.tfx has {spec}"),
            ("tfx.sha256", "e" * 64, r"SHA-256 eeeeeeeeeeee, model.onnx of .*mine.tfx has {sha256}"),
            ("tfx.precision", "fp16", r"is in fp16, asked for is fp32"),
        ],
    )
    def test_one_that_serves_another_network(self, key: str, value: str, words: str, serve: Serve) -> None:
        at = serve()
        at.open().close()
        change(at, key, value)
        here = backend.spec_digest(at.model.spec)[:12], at.model.artifact("onnx", "fp32")[1][:12]
        with pytest.raises(BackendUnavailable, match=words.format(spec=here[0], sha256=here[1])) as caught:
            at.open()
        line_of(caught)

    def test_a_repository_that_tfx_did_not_write(self, serve: Serve) -> None:
        at = serve()
        del at.fake.models["mine"].config.parameters["tfx.spec"]
        with pytest.raises(BackendUnavailable, match=r"lacks tfx\.spec, so that nobody knows what network"):
            at.open()

    def test_other_shapes_names_and_types(self, serve: Serve) -> None:
        at = serve()
        config = at.fake.models["mine"].config
        config.output[0].dims[0] = 3
        with pytest.raises(BackendUnavailable) as caught:
            at.open()
        assert "gives stems [B, 3, 4, 16, 256], the spec says stems [B, 2, 4, 16, 256]" in line_of(caught)
        config.output[0].dims[0] = 2
        config.input[0].name = "x"
        with pytest.raises(BackendUnavailable, match=r"takes x \[B, 4, 16, 256\], the spec says mixture"):
            at.open()
        config.input[0].name = INPUT
        triton_server.KINDS["TYPE_INT8"] = ("INT8", np.dtype(np.int8))
        config.input[0].data_type = 6
        with pytest.raises(BackendUnavailable, match="takes mixture as INT8, it may be FP32 or FP16"):
            at.open()

    def test_a_model_without_batches(self, serve: Serve) -> None:
        at = serve()
        at.fake.models["mine"].config.max_batch_size = 0
        for end in (*at.fake.models["mine"].config.input, *at.fake.models["mine"].config.output):
            end.dims.insert(0, -1)
        with pytest.raises(BackendUnavailable, match="max_batch_size 0, 1 or more is needed"):
            at.open()

    def test_it_is_noticed_when_the_model_changes_meanwhile(self, serve: Serve) -> None:
        at = serve()
        session = at.open()
        session.infer(planes(at, 1))
        change(at, "tfx.sha256", "d" * 64)
        with pytest.raises(BackendUnavailable, match="became another model while it was in use"):
            session.infer(planes(at, 1))

    def test_an_error_of_the_server(self, serve: Serve, song: Path, tfx: Tfx) -> None:
        at = serve()
        at.fake.failing = grpc.StatusCode.INTERNAL, "onnx runtime error 6:\n no memory left"
        line = ("separate", song, "-m", at.model.name, "--backend", "triton", "--device", at.device)
        done = tfx(*line, "-o", song.parent / "out")
        assert done.code == 4
        assert (
            "answers ModelInfer with INTERNAL (onnx runtime error 6: no memory left): see its log" in done.err
        )
        assert not list(song.parent.glob("out/**/*.wav"))
        assert at.fake.asked.count("ModelInfer") == 1  # nothing is tried twice

    def test_an_answer_that_does_not_come_in_time(self, serve: Serve) -> None:
        at = serve()
        session = at.open(device=f"{at.device}?timeout_s=0.2")  # opening has its own time
        at.fake.free.clear()
        with pytest.raises(BackendUnavailable) as caught:
            session.infer(planes(at, 1))
        assert "did not answer ModelInfer within 0.2 s" in line_of(caught)
        at.fake.free.set()

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (
                lambda answer: answer.outputs[0].shape.__setitem__(0, 7),
                "gave stems as FP32 [7, 2, 4, 16, 256]",
            ),
            (lambda answer: setattr(answer.outputs[0], "datatype", "FP16"), "gave stems as FP16"),
            (lambda answer: setattr(answer.outputs[0], "name", "x"), "gave stems as nothing [] in 0 bytes"),
            (
                lambda answer: answer.raw_output_contents.__setitem__(0, b"123"),
                "in 3 bytes, the spec says FP32",
            ),
            (lambda answer: answer.raw_output_contents.pop(), "gave 0 tensors for 1 outputs"),
        ],
    )
    def test_an_answer_that_is_none(
        self, spoil: Callable[[Message], object], words: str, serve: Serve
    ) -> None:
        at = serve()
        session = at.open()

        def spoiled(answer: Message) -> Message:
            spoil(answer)
            return answer

        at.fake.spoiled = spoiled
        with pytest.raises(BackendUnavailable, match=re.escape(words)) as caught:
            session.infer(planes(at, 1))
        line_of(caught)

    def test_a_network_that_gives_nan_is_the_engines_to_see(self, serve: Serve) -> None:
        at = serve()

        def spoiled(answer: Any) -> Any:
            whole = np.frombuffer(answer.raw_output_contents[0], np.float32).copy()
            whole[5] = np.nan
            answer.raw_output_contents[0] = whole.tobytes()
            return answer

        at.fake.spoiled = spoiled
        with (
            Separator(at.model, backend="triton", options=at.options) as separator,
            pytest.raises(NonFiniteError),
        ):
            separator.separate(mixture())

    def test_a_server_that_is_killed_in_the_middle(
        self, exported: BundleModel, song: Path, tmp_path: Path
    ) -> None:
        """Real processes: the server dies while it holds a chunk of the song."""
        export_triton(exported, tmp_path / "repository", Serving(max_batch=1))
        command = [sys.executable, triton_server.__file__, str(tmp_path / "repository"), "--hold"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            device = f"grpc://127.0.0.1:{server.stdout.readline().strip()}"
            line = ["separate", song, "-m", exported.name, "--backend", "triton", "--device", device]
            client = subprocess.Popen(
                [sys.executable, "-m", "tfswa.runtime", *map(str, line), "-o", str(tmp_path / "out")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert server.stdout.readline() == "begun\n"
            server.kill()
            out, err = client.communicate()
        assert (client.returncode, out) == (4, "")
        last = err.splitlines()[-1]
        assert last.startswith(f"tfx: {song}: no Triton server answers at 127.0.0.1:")
        assert "Traceback" not in err
        assert not list(tmp_path.glob("out/**/*.wav"))

    def test_a_precision_that_it_has_not(self, serve: Serve) -> None:
        with pytest.raises(UsageError, match="no precision 'bf16': choose fp32 or fp16"):
            serve().open(precision="bf16")

    def test_what_brings_the_library_is_said(
        self, exported: BundleModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("grpc", "tritonclient.grpc"):
            with monkeypatch.context() as without:
                without.setitem(sys.modules, name, None)
                with pytest.raises(BackendUnavailable, match=r"pip install 'tfswa\[triton\]'"):
                    open_session("triton", exported, BackendOptions(device="grpc://127.0.0.1:9"))


class TestAddresses:
    @pytest.mark.parametrize(
        ("device", "address"),
        [
            ("grpc://host", ServerAddress("host:8001", False, "", 300.0)),
            ("grpcs://host:9/vocals", ServerAddress("host:9", True, "vocals", 300.0)),
            ("grpc://[::1]:9/a?timeout_s=2.5", ServerAddress("[::1]:9", False, "a", 2.5)),
        ],
    )
    def test_what_can_be_said(self, device: str, address: ServerAddress) -> None:
        assert ServerAddress.of(device) == address

    @pytest.mark.parametrize(
        "device",
        [
            "cpu",
            "cuda:0",
            "http://host",
            "grpc://",
            "grpc://host:port",
            "grpc://host:99999",
            "grpc://me:secret@host",
            "grpc://host/a/b",
            "grpc://host?timeout_s=0",
            "grpc://host?timeout_s=nan",
            "grpc://host?timeout_s=soon",
            "grpc://host?timeout=3",
            "grpc://host?x",
            "grpc://host#x",
            "grpc://[::1",
        ],
    )
    def test_what_cannot(self, device: str, exported: BundleModel) -> None:
        with pytest.raises(BackendUnavailable, match=r"grpc://HOST:PORT") as caught:
            open_session("triton", exported, BackendOptions(device=device))
        assert line_of(caught)

    def test_none_is_said(self, exported: BundleModel, tfx: Tfx) -> None:
        done = tfx("separate", "song.wav", "-m", exported.name, "--backend", "triton")
        assert done.code == 4
        assert done.lines[-1].startswith(
            "tfx: backend triton runs on a server, the device is cpu: use --device"
        )

    def test_a_slip_of_the_pen(self, exported: BundleModel) -> None:
        with pytest.raises(UsageError, match="unknown device 'GRPC', did you mean 'grpc'"):
            open_session("triton", exported, BackendOptions(device="GRPC://host"))


class TestEvidence:
    def test_parity_holds_for_what_the_server_runs_at_whatever_address(
        self, serve: Serve, tfx: Tfx, song: Path
    ) -> None:
        at = serve()
        line = ("--backend", "triton", "--device", at.device)
        done = tfx("parity", at.model.name, *line, "--json")
        assert done.code == 0, done.err
        (certificate,) = json.loads(done.out)["certificates"]
        assert certificate["passed"] is True
        assert certificate["device"] == "triton"
        sha256 = at.model.artifact("onnx", "fp32")[1]
        assert (certificate["artifact"], certificate["artifact_sha256"]) == ("model.onnx", sha256)
        assert certificate["versions"]["triton"] == "2.99.0"
        assert certificate["versions"]["triton model"] == "mine 1"
        assert certificate["versions"]["triton runs"] == "onnxruntime on KIND_CPU"
        assert str(at.port) not in json.dumps(certificate)
        assert {(row["axis"], row["value"]) for row in certificate["axes"]} >= {("batch", 2), ("batch", 4)}
        done = tfx(
            "separate", song, "-m", at.model.name, *line, "--require-parity", "-o", song.parent / "out"
        )
        assert done.code == 0, done.err
        assert "parity passed" in done.err

    def test_another_server_version_or_model_has_no_certificate(self, serve: Serve, tfx: Tfx) -> None:
        at = serve()
        assert tfx("parity", at.model.name, "--backend", "triton", "--device", at.device, "--quick").code == 0
        model = open_model(at.model.name)
        session = open_session("triton", model, at.options)
        assert certified_device(session, at.device) == "triton"
        assert passing(model, session, at.options) is not None
        at.fake.VERSION = "3.0.0"  # type: ignore[misc]
        session = open_session("triton", model, at.options)
        with pytest.raises(GateError, match=rf"run `tfx parity .* --backend triton --device {at.device}`"):
            require_passing(model, session, at.options)

    def test_bench_runs_over_it_and_keeps_nothing_for_auto(self, serve: Serve, tfx: Tfx) -> None:
        at = serve()
        line = ("bench", at.model.name, "--backend", "triton", "--device", at.device, "--rounds", 1)
        report = tfx(*line, "--json").json
        (row,) = report["rows"]
        assert row["median_ms"] > 0
        assert row["versions"]["triton model"] == "mine 1"
        done = tfx(*line, "--auto")
        assert done.code == 2
        assert "--auto is of this machine" in done.err
