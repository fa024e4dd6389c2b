"""Where a training configuration is found: a file, a name that is shipped with tfx, or a run."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.errors import ConfigError, TfxError, TrainingError, UsageError
from tfswa.runtime.files.hashes import sha256_of_json
from tfswa.runtime.model.bundle import Bundle
from tfswa.train.bounds import check_bounds
from tfswa.train.config import ModelConfig, TrainConfig
from tfswa.train.strict import config_from_dict, parse_overrides, read_toml, suggestion

SHIPPED = Path(__file__).parent / "configs"
RUN_CONFIG = "config.json"
_DIGEST = "sha256"

log = logging.getLogger(__name__)


def find_config(name: str) -> tuple[Path, Path | None]:
    """Find a configuration by its path, or by the name of one that is shipped.

    Returns:
        The file, and what paths in it are relative to: None for its own folder; of a name the working folder.

    Raises:
        UsageError: neither; with the nearest name, or all of them.
    """
    path = Path(name)
    if name and path.is_file():
        return path, None
    known = sorted(file.stem for file in SHIPPED.glob("*.toml"))
    if name in known:
        return SHIPPED / f"{name}.toml", Path.cwd()
    if not name:
        raise UsageError(f"a configuration is missing: name a TOML file, or one of {', '.join(known)}")
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"{name}: no such file{suggestion(path.stem, known)}")
    raise ConfigError(f"no file and no configuration is called {name!r}{suggestion(name, known)}")


def summaries() -> dict[str, str]:
    """First line of each shipped configuration's comment, by name."""
    files = sorted(SHIPPED.glob("*.toml"))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in files}


def load_config(path: Path, overrides: Sequence[str] = (), *, base: Path | None = None) -> TrainConfig:
    """Read a TOML file and apply ``section.key=value`` overrides, values in TOML's syntax.

    Args:
        path: the file.
        overrides: paths in them are relative to the working directory.
        base: what paths in the file are relative to; None for its own folder.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, impossible value.
    """
    return config_of(read_toml(path, overrides), overrides, base or path.parent)


def run_config_text(config: TrainConfig) -> str:
    """What a run keeps of its configuration, with the digest of all else that ``load_run_config`` checks."""
    values = config.to_dict()
    return json.dumps({**values, _DIGEST: sha256_of_json(values)}, indent=1) + "\n"


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read what a run was configured as, and apply overrides.

    Raises:
        TrainingError: there is no run.
        ConfigError: the file is damaged, or a wrong override.
    """
    path = run / RUN_CONFIG
    try:
        data = parse_json(read_document(path))
        carried = data.pop(_DIGEST, None) if isinstance(data, dict) else None
        if carried is None:
            log.warning("%s carries no digest of itself: it is not checked for damage", path)
        elif carried != sha256_of_json(data):
            raise ValueError("its own digest does not match; what an edit was to change, give as KEY=VALUE")
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}): nothing to resume") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): name the configuration") from error
    return config_of(parse_overrides(overrides, data), overrides, run)


def config_of(values: Mapping[str, Any], overrides: Sequence[str], base: Path) -> TrainConfig:
    """Build and check a configuration; paths become absolute.

    Args:
        values: the file's content, overrides applied.
        overrides: paths in them are relative to the working directory.
        base: what the other paths are relative to.

    Raises:
        ConfigError: unknown key, wrong type, impossible value.
    """
    config = config_from_dict(TrainConfig, values)
    typed = {override.partition("=")[0].strip() for override in overrides}

    def absolute(key: str, name: str) -> str:
        place = Path.cwd() if key in typed else base
        return str((place / name).resolve()) if name else ""

    data, model, loss = config.data, config.model, config.loss
    features = loss.perceptual_network
    if features != "log_mel" and ":" not in features:  # a file
        features = absolute("loss.perceptual_network", features)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            data, root=absolute("data.root", data.root), cache=absolute("data.cache", data.cache)
        ),
        model=_completed(
            dataclasses.replace(model, init=absolute("model.init", model.init)), values.get("model", {})
        ),
        loss=dataclasses.replace(loss, perceptual_network=features),
    )
    check_bounds(config)
    return config


def _completed(model: ModelConfig, said: Mapping[str, Any]) -> ModelConfig:
    """What a configuration that names no family does not say of the model: that of the bundle it begins with.

    Raises:
        ConfigError: it is no bundle that can be begun with.
    """
    if "family" in said or not model.init or not Path(model.init).is_dir():
        return model
    try:
        spec = Bundle.open(Path(model.init)).spec
    except TfxError as error:
        raise ConfigError(f"model.init {model.init} cannot be read ({error}): name a bundle") from error
    if spec.family is None:
        raise ConfigError(
            f"model.init {model.init} is a published graph without weights to begin from: name another bundle"
        )
    values: dict[str, Any] = {"family": spec.family, "channels": spec.channels}
    values["zero_unseen"] = spec.unseen_stem is None
    values["hyper"] = {**spec.hyper, **model.hyper}
    for name, part in (("stft", spec.stft), ("chunk", spec.chunk)):
        values[name] = {**json.loads(json.dumps(dataclasses.asdict(part))), **getattr(model, name)}
    if "stems" not in said:
        values["stems"] = spec.stems
        values["network_stems"] = spec.network_stems or ()
        values["residual_stem"] = spec.residual_stem or ""
    if "license" not in said:
        values["license"] = spec.weights_license
    return dataclasses.replace(model, **values)
