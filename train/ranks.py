"""What torchrun says of the processes, read before any library does, which would fail on a wrong word."""

from __future__ import annotations

import os

from tfswa.runtime.errors import ConfigError


def process_rank() -> int:
    """Which of the processes this is, from 0, by torchrun's variables; each is checked.

    Raises:
        ConfigError: one that is no whole number, or out of its range.
    """
    values = {}
    for name, least in (("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)):
        text = os.environ.get(name, str(least))
        if not text.isdecimal() or int(text) < least:
            raise ConfigError(
                f"the environment has {name}={text!r}, not a whole number from {least}: "
                "start several processes by torchrun, or unset it"
            )
        values[name] = int(text)
    for name, world in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if values[name] >= values[world]:
            raise ConfigError(
                f"the environment has {name}={values[name]} with {world}={values[world]}: "
                "start several processes by torchrun, or unset both"
            )
    return values["RANK"]
