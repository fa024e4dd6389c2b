"""``pytest -p tfswa.runtime.pytest_plugin --tfx-bundle vocals.tfx``: tests of a bundle's parity.

Each backend, stem and item is one test. The plug-in is loaded only where ``-p`` or ``pytest_plugins`` names
it, so that having tfswa installed costs other test runs nothing.
Every backend is measured when its first test runs; ``-k`` therefore saves the time of whole backends.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tfswa.runtime.gates import Gates
    from tfswa.runtime.model.opening import Model
    from tfswa.runtime.parity.candidates import Candidate
    from tfswa.runtime.parity.certificate import Certificate
    from tfswa.runtime.parity.corpus import Item
    from tfswa.runtime.parity.judge import Breach

OTHERS = ("graph", "axes", "finite")  # levels whose breaches belong to no single stem of an item


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--tfx-bundle`` and what goes with it."""
    group = parser.getgroup("tfx", "parity of separation networks")
    group.addoption(
        "--tfx-bundle", action="append", default=[], metavar="BUNDLE", help="Bundle to measure; repeatable."
    )
    group.addoption(
        "--tfx-backend",
        action="append",
        default=[],
        metavar="NAME[:PRECISION]",
        help="Backend to measure; repeatable; default: all, those that cannot run are skipped.",
    )
    group.addoption("--tfx-audio", type=Path, help="Songs; default: a synthetic one.")
    group.addoption("--tfx-gates", type=Path, help="What must be reached, TOML; default: tfx's gates.toml.")


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the tests of every bundle."""
    for name in config.getoption("--tfx-bundle"):
        items.extend(_tests(session, name))


def _tests(session: pytest.Session, name: str) -> Iterator[pytest.Item]:
    from tfswa.runtime.errors import TfxError

    try:
        measured = Measured(session.config, name)
        bundle = BundleNode.from_parent(session, name=name, nodeid=name)
        for run in measured.runs:
            for item in measured.corpus:
                for stem in measured.model.spec.stems:
                    test = f"{run.name}-{item.name}-{stem}"
                    yield ParityTest.from_parent(
                        bundle, name=test, measured=measured, run=run, of=(item.name, stem)
                    )
            for level in OTHERS:
                test = f"{run.name}-{level}"
                yield ParityTest.from_parent(bundle, name=test, measured=measured, run=run, of=(level,))
    except TfxError as error:
        raise pytest.UsageError(f"--tfx-bundle {name}: {error}") from error


class Measured:
    """A bundle, and the certificates of its runs, each made when it is first asked for."""

    def __init__(self, config: pytest.Config, name: str):
        from tfswa.runtime.gates import default_gates, load_gates
        from tfswa.runtime.model.opening import open_model
        from tfswa.runtime.parity.candidates import candidates_of
        from tfswa.runtime.parity.corpus import adversaries, songs

        gates: Path | None = config.getoption("--tfx-gates")
        self.gates: Gates = load_gates(gates) if gates else default_gates()
        self.model: Model = open_model(name)
        self.corpus: list[Item] = songs(config.getoption("--tfx-audio"), self.model.spec)
        self.corpus += adversaries(self.model.spec)
        self.runs: list[Candidate]
        self.runs, self.named = candidates_of(config.getoption("--tfx-backend"))
        self._found: dict[str, Certificate | str] = {}

    def breaches(self, run: Candidate) -> list[Breach]:
        """What one run does not reach; skips where it cannot be."""
        from tfswa.runtime.parity.compare import certify
        from tfswa.runtime.parity.judge import judge

        if run.name not in self._found:
            missing: dict[str, str] = {}
            made = certify(self.model, self.corpus, [run], missing=None if self.named else missing)
            self._found[run.name] = made[0] if made else missing[run.name]
        found = self._found[run.name]
        if isinstance(found, str):
            pytest.skip(found)
        return judge(found, self.gates)


class BundleNode(pytest.Collector):
    """The parent of a bundle's tests."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: its tests are made by ``pytest_collection_modifyitems``."""
        return []


class ParityTest(pytest.Item):
    """One stem of one item on one backend, or one of its levels that are not of a stem."""

    def __init__(self, *, measured: Measured, run: Candidate, of: tuple[str, ...], **given: Any):
        super().__init__(**given)
        self._measured, self._run, self._of = measured, run, of

    def runtest(self) -> None:
        """Fail with every breach that is of this test."""
        found = [breach for breach in self._measured.breaches(self._run) if self._belongs(breach)]
        if found:
            raise ParityError("\n".join(map(str, found)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The breaches alone: where the plug-in raised them helps nobody."""
        if isinstance(excinfo.value, ParityError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """What is shown in place of a file and a line."""
        return self.name, None, self.name

    def _belongs(self, breach: Breach) -> bool:
        if breach.level in OTHERS:
            return self._of == (breach.level,)
        return self._of == (breach.item, breach.stem)


class ParityError(AssertionError):
    """A gate that is not met."""
