"""Where a training configuration is found: a file, a name that is shipped with tfx, or a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfswa.runtime.errors import ConfigError, TrainingError, UsageError
from tfswa.train.strict import did_you_mean, parse_overrides

if TYPE_CHECKING:
    from tfswa.train.config import TrainConfig

SHIPPED = Path(__file__).parent / "configs"
RUN_CONFIG = "config.json"


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
        raise ConfigError(f"{name}: no such file{did_you_mean(path.stem, known)}")
    raise ConfigError(f"no file and no configuration is called {name!r}{did_you_mean(name, known)}")


def summaries() -> dict[str, str]:
    """First line of each shipped configuration's comment, by name."""
    files = sorted(SHIPPED.glob("*.toml"))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in files}


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read what a run was configured as, and apply overrides.

    Raises:
        TrainingError: there is no run.
        ConfigError: the file is damaged, or a wrong override.
    """
    from tfswa.train.config import config_of

    path = run / RUN_CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}): nothing to resume") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): name the configuration") from error
    return config_of(parse_overrides(overrides, data), overrides, run)
