"""Certificates: what they are bound to, how a bundle keeps them, and what `tfx separate` says of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parity_fakes import CHUNK, Fixed, certificate, quality, signal

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import BundleError, GateError
from tfswa.runtime.gates import default_gates
from tfswa.runtime.model.bundle import MANIFEST, Bundle
from tfswa.runtime.model.keys import EVIDENCE
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.parity import evidence as module
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.evidence import describe_evidence, read_evidence, require_passing, store
from tfswa.runtime.parity.judge import judge, passes

CPU = BackendOptions()


def of(model: BundleModel, **changes: Any) -> Certificate:
    """A certificate of ``Fixed`` in this bundle."""
    session = Fixed()
    name, sha256 = session.artifact
    given = {"artifact": name, "artifact_sha256": sha256, "backend": session.name}
    given |= {"source": model.bundle.digest, "versions": module.versions_of(session)}
    return certificate(**{**given, **changes})


def reopen(model: BundleModel) -> BundleModel:
    return dataclasses.replace(model, bundle=Bundle.open(model.bundle.path))


FAILED: dict[str, Any] = {"signal": [signal(10.0)]}


class TestEvidence:
    def test_is_stored_in_the_bundle_and_read_back(self, model: BundleModel) -> None:
        made = of(model, x_realtime=None, quality=[quality(None)], reference_rounding_db={"vocals": 130.0})
        path = store(model, [made])
        assert path == model.bundle.path / EVIDENCE
        (found,) = read_evidence(reopen(model))
        assert json.dumps(found.to_dict()) == json.dumps(made.to_dict())
        assert judge(found, default_gates()) == judge(made, default_gates()) == []
        listed = json.loads((model.bundle.path / MANIFEST).read_text())["files"]
        assert listed[EVIDENCE]["kind"] == "evidence"

    def test_it_holds_figures_and_no_verdict(self, model: BundleModel) -> None:
        store(model, [of(model, **FAILED)])
        text = (model.bundle.path / EVIDENCE).read_text()
        for word in ("passed", "gate", "verdict", "limit", "Infinity", "NaN"):
            assert word not in text
        (found,) = read_evidence(model)
        assert not passes(found)

    def test_the_same_combination_replaces_and_others_stay(self, model: BundleModel) -> None:
        store(model, [of(model), of(model, backend="other")])
        others: list[dict[str, Any]] = [
            {"threads": 2},
            {"batch": 2},
            {"device": "cuda"},
            {"cpu": "another"},
            {"reference": "float64"},
            {"corpus_sha256": "e" * 64},
            {"versions": {"tfswa": "1"}},
            {"artifact_sha256": "f" * 64},
        ]
        store(model, [of(model, **change) for change in others])
        assert len(read_evidence(model)) == 2 + len(others)
        store(model, [of(model, **FAILED)])
        assert len(read_evidence(model)) == 2 + len(others)
        assert not passes(read_evidence(model)[-1])

    @pytest.mark.parametrize(
        "damage", ["", "{", "[]", '{"schema": 2}', '{"schema": 2, "certificates": [{}]}']
    )
    def test_damage_is_an_error_that_measuring_again_mends(self, model: BundleModel, damage: str) -> None:
        store(model, [of(model)]).write_text(damage)
        with pytest.raises(BundleError, match=EVIDENCE):
            read_evidence(model)
        store(model, [of(model)])
        assert len(read_evidence(reopen(model))) == 1

    @pytest.mark.parametrize("text", ["[]", '{"schema": 2, "certificates": [{"graph": 3}]}', '{"schema": 2}'])
    def test_damage_that_is_in_the_manifest_too(self, model: BundleModel, text: str) -> None:
        model.bundle.add(EVIDENCE, text.encode(), kind="evidence")
        with pytest.raises(BundleError, match=r"damaged .*run `tfx parity` again"):
            read_evidence(model)

    def test_evidence_of_another_schema_is_not_ours_to_read(self, model: BundleModel) -> None:
        text = '{"schema": 1, "runs": [{}]}'
        model.bundle.add(EVIDENCE, text.encode(), kind="evidence")
        assert read_evidence(model) == []

    def test_that_of_a_sealed_bundle_goes_to_the_users_cache(
        self, model: BundleModel, private_cache: Path
    ) -> None:
        model.bundle.seal()
        sealed = reopen(model)
        before = {path.name: path.read_bytes() for path in sealed.bundle.path.iterdir()}
        for _ in range(2):
            path = store(sealed, [of(sealed)])
            assert private_cache in path.parents
            assert {path.name: path.read_bytes() for path in sealed.bundle.path.iterdir()} == before
            assert len(read_evidence(reopen(sealed))) == 1

    def test_a_bundle_without_any_and_a_file(self, model: BundleModel) -> None:
        assert read_evidence(model) == []
        file: Any = dataclasses.replace(model, bundle=None)
        assert read_evidence(file) == []


class TestDescription:
    """What `tfx separate` says of the combination that it runs."""

    @pytest.fixture(autouse=True)
    def able(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if the model's family and torch were installed: parity could be measured."""
        point = SimpleNamespace(name="none")
        monkeypatch.setattr(module, "entry_points", lambda group: [point])
        monkeypatch.setattr(module, "find_spec", lambda name: point)

    def test_of_a_combination_that_passed(self, model: BundleModel) -> None:
        store(model, [of(model)])
        assert describe_evidence(model, Fixed(), CPU) == "parity passed (120 dB SNR, 2026-11-22)"
        require_passing(model, Fixed(), CPU)
        store(model, [of(model, signal=[signal(None, identical=True)])])
        assert describe_evidence(model, Fixed(), CPU) == "parity passed (identical, 2026-11-22)"

    def test_without_any(self, model: BundleModel) -> None:
        advice = f": run `tfx parity {model.name} --backend fixed`"
        assert describe_evidence(model, Fixed(), CPU) == f"no parity evidence here{advice}"
        with pytest.raises(GateError, match=r"model\.fixed of .* holds no passing certificate") as caught:
            require_passing(model, Fixed(), CPU)
        assert str(caught.value).endswith(advice)
        assert caught.value.exit_code == 3
        other = BackendOptions("fp16", "cuda")
        assert describe_evidence(model, Fixed(), other).endswith("--backend fixed:fp16 --device cuda`")

    def test_of_one_that_failed(self, model: BundleModel) -> None:
        store(model, [of(model, **FAILED)])
        told = describe_evidence(model, Fixed(), CPU)
        assert told.startswith("parity FAILED on 2026-11-22 (")
        assert ", the limit is " in told
        with pytest.raises(GateError):
            require_passing(model, Fixed(), CPU)
        # Of several the newest is told, and one that passed is enough.
        store(model, [of(model, threads=3, date="2026-11-23T00:00:00+00:00", **FAILED)])
        assert describe_evidence(model, Fixed(), CPU).startswith("parity FAILED on 2026-11-23 (")
        store(model, [of(model, threads=5)])
        assert describe_evidence(model, Fixed(), CPU).startswith("parity passed (")

    def test_where_nothing_can_be_measured_nobody_is_asked_to(
        self, model: BundleModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        assert describe_evidence(model, Fixed(), CPU) == "no parity evidence here"

    def test_a_precision_without_gates_never_passes(self, model: BundleModel) -> None:
        store(model, [of(model, precision="fp8")])
        assert describe_evidence(model, Fixed(), BackendOptions("fp8")).startswith(
            "parity FAILED on 2026-11-22 ("
        )

    @pytest.mark.parametrize(
        ("session", "options"),
        [
            (Fixed(artifact=("model.fixed", "b" * 64)), CPU),
            (Fixed(artifact=("model.fp16", "a" * 64)), CPU),
            (Fixed(versions={"fixed": "1.1"}), CPU),
            (Fixed(versions={}), CPU),
            (Fixed(versions={"fixed": "1.0", "driver": "5"}), CPU),
            (Fixed(name="other"), CPU),
            (Fixed(), BackendOptions(device="cuda")),
            (Fixed(), BackendOptions(precision="fp16")),
        ],
        ids=["hash", "file", "version", "no version", "more versions", "backend", "device", "precision"],
    )
    def test_of_another_combination(
        self, model: BundleModel, session: Fixed, options: BackendOptions
    ) -> None:
        store(model, [of(model)])
        assert "passed (" in describe_evidence(model, Fixed(), BackendOptions(precision="fp32"))
        assert describe_evidence(model, session, options).startswith("no parity evidence")

    def test_of_another_chunking_of_the_same_weights(self, model: BundleModel) -> None:
        store(model, [of(model)])
        text = (model.bundle.path / EVIDENCE).read_text()
        spec = dataclasses.replace(model.spec, chunk=dataclasses.replace(CHUNK, context=0))
        weights = model.bundle.weights()
        other = Bundle.create(model.bundle.path, spec, weights, force=True)
        other.add(EVIDENCE, text.encode(), kind="evidence")
        changed = dataclasses.replace(model, bundle=other)
        assert describe_evidence(changed, Fixed(), CPU).startswith("no parity evidence")

    def test_of_another_tfx(self, model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
        store(model, [of(model)])
        monkeypatch.setattr(module, "version", lambda name: "99.0")
        assert describe_evidence(model, Fixed(), CPU).startswith("no parity evidence")

    def test_damaged_evidence_is_no_reason_not_to_separate(self, model: BundleModel) -> None:
        store(model, [of(model)]).write_text("{")
        text = describe_evidence(model, Fixed(), CPU)
        assert text == f"the parity evidence is damaged: run `tfx parity {model.name} --backend fixed`"
        with pytest.raises(BundleError):
            require_passing(model, Fixed(), CPU)
