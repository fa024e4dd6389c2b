"""What a service is told when it starts: the file of ``tfx serve --config``, in TOML.

host, port, data, keys          where it listens, where it keeps jobs, who may ask
[models]                        name = "model", or name = {models = [...], combine, weights, then}
[engine]                        what runs the networks
[limits]                        what anybody may take
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tfswa.runtime.errors import UsageError, did_you_mean, reason
from tfswa.runtime.limits import MOST_BATCH, MOST_THREADS
from tfswa.runtime.stream.arrangement import Arrangement, arrange

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ServedModel(_Table):
    """A model that is served, or several that work together; see ``arrange``.

    Attributes:
        models: bundles, files or names.
        combine: the rule for several.
        weights: of several.
        then: what separates a stem further.
    """

    models: Annotated[list[str], Field(min_length=1)]
    combine: Literal["mean", "median", "max", "min"] | None = None
    weights: list[str] = []
    then: list[str] = []

    def arranged(self, *, trusted: bool) -> Arrangement:
        """It, not yet loaded; raises as ``arrange``."""
        return arrange(self.models, how=self.combine, weights=self.weights, then=self.then, trusted=trusted)


class EngineSettings(_Table):
    """What runs the networks.

    Attributes:
        backend: as of ``tfx separate``.
        precision: of the artifacts; None for fp32.
        devices: a worker process for each; empty for the one that the backend takes if nobody says.
        threads: of the CPU, for each worker; None for all.
        batch: chunks that a network gets at once, see ``Batcher``.
        wait_ms: how long a chunk waits for others.
        jobs: how many each worker separates at once.
        memory_mb: by how much a worker may grow once its networks are loaded.
        trust: see ``open_model``.
        require_parity: refuse to start without a passing certificate of each network.
        on_nonfinite: see ``Separator``.
    """

    backend: str = "auto"
    precision: str | None = None
    devices: list[str] = []
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    batch: Annotated[int, Field(ge=1, le=MOST_BATCH)] = 1
    wait_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    jobs: Annotated[int, Field(ge=1, le=64)] = 2
    memory_mb: Positive = 4096.0
    trust: bool = False
    require_parity: bool = False
    on_nonfinite: Literal["error", "recompute"] = "error"


class ServiceLimits(_Table):
    """What anybody may take.

    Attributes:
        upload_mb: of a file.
        audio_seconds: of a job's input.
        wall_seconds: of a job, from its beginning to its end.
        stream_seconds: of a signal.
        stuck_seconds: between two chunks of a job, before its worker is ended: a decoder hangs.
        silent_seconds: how long a caller may send or take nothing in the middle of a request.
        jobs: of a key, queued and running.
        streams: of a key, at once.
        requests: of a key, in a minute.
        data_gb: of the folder of jobs.
        keep_hours: how long results are kept.
    """

    upload_mb: Positive = 2048.0
    audio_seconds: Positive = 4 * 3600.0
    wall_seconds: Positive = 4 * 3600.0
    stream_seconds: Positive = 4 * 3600.0
    stuck_seconds: Positive = 1800.0
    silent_seconds: Positive = 60.0
    jobs: Count = 100
    streams: Count = 8
    requests: Count = 600
    data_gb: Positive = 50.0
    keep_hours: Positive = 24.0


class ServiceSettings(_Table):
    """All of it.

    Attributes:
        host: name or address that it listens on.
        port: of TCP; 0 for any that is free.
        data: folder of jobs.
        keys: file of keys; None where everybody may ask, which this machine alone can then.
        models: what is served, by the name that requests say; the first is the default.
        engine: see there.
        limits: see there.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    data: Annotated[Path, Field(strict=False)] = Path("tfx-service")
    keys: Annotated[Path, Field(strict=False)] | None = None
    models: dict[str, ServedModel] = {"demo": ServedModel(models=["demo"])}
    engine: EngineSettings = EngineSettings()
    limits: ServiceLimits = ServiceLimits()

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A model alone may be said by its name."""
        if isinstance(given, Mapping):
            return {name: {"models": [one]} if isinstance(one, str) else one for name, one in given.items()}
        return given

    @field_validator("models")
    @classmethod
    def _some(cls, models: dict[str, ServedModel]) -> dict[str, ServedModel]:
        if not models:
            raise ValueError("no model is served: name one")
        for name in models:
            if not re.fullmatch(MODEL_NAME, name):
                raise ValueError(
                    f"{name!r} is no name: use up to 64 letters, digits, dots, dashes and underscores"
                )
        return models

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can ask."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def default_model(self) -> str:
        """Where a request names none."""
        return next(iter(self.models))


def read_settings(path: Path | None, **given: Any) -> ServiceSettings:
    """Settings of a file; what is given beside it goes before it.

    Args:
        path: of TOML; None for the defaults.
        given: fields of ``ServiceSettings``; tables are laid over those of the file, and None says nothing.

    Raises:
        UsageError: the file cannot be read, or something in it is no setting.
    """
    held: dict[str, Any] = {}
    if path is not None:
        try:
            held = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    for name, value in given.items():
        if isinstance(value, Mapping) and name != "models":
            said = {key: one for key, one in value.items() if one is not None}
            below = held.get(name, {})
            held[name] = {**below, **said} if isinstance(below, Mapping) else below
        elif value is not None:
            held[name] = value
    try:
        return ServiceSettings.model_validate(held)
    except ValidationError as error:
        raise UsageError(f"{path or 'settings'}: {_first(error)}") from None


def named_models(given: Iterable[str]) -> dict[str, str]:
    """``NAME=MODEL`` or ``MODEL`` to models by name: that of a file is its own without the ending.

    Raises:
        UsageError: a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not equals:
            name, model = Path(text).stem, text
        if name in found:
            raise UsageError(f"two models are called {name}, {found[name]} and {model}: say NAME=MODEL")
        found[name] = model
    return found


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, where, and what was given."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        table: Any = ServiceSettings
        for part in first["loc"][:-1]:
            table = getattr(table.model_fields.get(part), "annotation", None) if table else None
            table = table if hasattr(table, "model_fields") else None
        known = list(table.model_fields) if table else []
        name = str(first["loc"][-1])
        return f"{place} is no setting{did_you_mean(name, known)}: see docs/serve.md"
    said = first["msg"].removeprefix("Value error, ")
    return f"{place} is {first['input']!r}: {said[0].lower()}{said[1:]}"
