"""Damage of files that are imported: of bytes, of state dictionaries, of YAML. Chosen by a random source."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]


def cut(content: bytes, choose: random.Random) -> bytes:
    """Truncated anywhere."""
    return content[: choose.randrange(len(content))]


def flipped(content: bytes, choose: random.Random) -> bytes:
    """One to eight bits the other way, as often as not near the beginning, where headers are."""
    changed = bytearray(content)
    reach = len(changed) if choose.random() < 0.5 else min(len(changed), 2000)
    for _ in range(choose.randint(1, 8)):
        changed[choose.randrange(reach)] ^= 1 << choose.randrange(8)
    return bytes(changed)


def moved(content: bytes, choose: random.Random) -> bytes:
    """A piece twice, gone, or filled with one byte."""
    start = choose.randrange(len(content))
    stop = min(len(content), start + choose.choice([1, 7, 300]))
    piece = content[start:stop]
    return content[:start] + choose.choice([2 * piece, b"", b"\xff" * len(piece)]) + content[stop:]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flipped, moved)
NAMES = (
    "",
    "a\nb",
    "x" * 3000,
    "\x1b[31m",
    "..",
    "ü\udcff"[:1],
    "fc1",
    "lstm.weight_ih_l999999999",
    "nets.0.fc1.weight",
)
TYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8)


def renamed(state: State, choose: random.Random) -> State:
    """A key of another name, missing, twice, or below another."""
    name = choose.choice([*state])
    others = {key: value for key, value in state.items() if key != name}
    number = next((part for part in name.split(".") if part.isdigit()), "0")
    new = choose.choice(
        [*NAMES, name + ".x", "module." + name, name.replace(number, choose.choice(["999999999", "7"]))]
    )
    return choose.choice([others, {**others, new: state[name]}, {**state, new: state[name]}])


def reshaped(state: State, choose: random.Random) -> State:
    """A tensor of another shape, or a claim of one that no memory holds."""
    tensors = [key for key, value in state.items() if isinstance(value, torch.Tensor)]
    name = choose.choice(tensors)
    value = state[name]
    huge = torch.zeros(1).expand(*[choose.choice([1, 7, 10**4, 10**6])] * choose.randint(1, 3))
    new = choose.choice(
        [
            value.reshape(-1),
            value[None],
            value.flatten()[:1],
            value.flatten()[:0],
            torch.zeros(()),
            torch.zeros(3, 0, 5),
            value.flatten()[:7].clone(),
            huge,
            value.transpose(0, -1).contiguous() if value.ndim else value,
        ]
    )
    return {**state, name: new}


def retyped(state: State, choose: random.Random) -> State:
    """Tensors of another type, or what is no tensor, or no number."""
    name = choose.choice([*state])
    value = state[name]
    kind = choose.randrange(4)
    if kind == 0:
        dtype = choose.choice(TYPES)
        return {key: one.to(dtype) if isinstance(one, torch.Tensor) else one for key, one in state.items()}
    if kind == 1 or not isinstance(value, torch.Tensor):
        return {**state, name: choose.choice([None, 3, "x", [1], {"a": 1}, {"a": value}, {1: value}])}
    if kind == 2 and value.is_floating_point():
        return {
            **state,
            name: choose.choice([value * float("nan"), value / 0, value * 1e30, value.to_sparse()]),
        }
    return {**state, name: value.to(choose.choice(TYPES))}


STATES: tuple[Callable[[State, random.Random], State], ...] = (renamed, reshaped, retyped)


class Mkdir:
    """A payload: whoever builds it makes a folder."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


class Shell(Mkdir):
    """The same by a shell."""

    def __reduce__(self) -> Any:
        return os.system, (f"mkdir {self.place}",)


class Disguised(Mkdir):
    """The same behind a class that files of weights do name: its state is set by what the pickle says."""

    def __reduce__(self) -> Any:
        import collections

        return collections.OrderedDict, (), None, None, iter([("weights", Mkdir(self.place))])


class Evaluated(Mkdir):
    """The same by ``eval``, which another one calls."""

    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').mkdir({str(self.place)!r})",)


PAYLOADS = (Mkdir, Shell, Disguised, Evaluated)
LONG = ("9" * 5000, "0x" + "f" * 5000, "1" + ":59" * 2000, "[" * 3000, "[" * 300 + "]" * 300, "x" * 100_000)
TAGS = (
    "!!python/object/apply:os.mkdir [owned]",
    "!!python/name:os.system",
    "!!python/object:os.X {}",
    "!!python/tuple [1, [2]]",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!float x",
    "!!int x",
    "!!timestamp x",
)
VALUES = (
    "null",
    "true",
    "-1",
    "0",
    "0.5",
    "1e300",
    ".inf",
    ".nan",
    "10000000000000000",
    "''",
    "x",
    "2001-01-01",
)
FORMS = (
    "[]",
    "[[]]",
    "{}",
    "{a: 1}",
    "[1, b, null]",
    "*nowhere",
    "&a [*a]",
    "? [1]",
    "<<",
    "{<<: 3}",
    '"a\\nb\\e[31m"',
)
WRONG = (*LONG, *TAGS, *VALUES, *FORMS)


def rewritten(text: str, choose: random.Random) -> str:
    """YAML, a line of it with another value; or lines that are gone, twice, or out of place."""
    lines = text.strip().splitlines()
    at = choose.randrange(len(lines))
    kind = choose.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(choose.randrange(len(lines)), lines[at])
    elif kind == 2:
        lines[at] = choose.choice(["  ", "\t", "- "]) + lines[at]
    else:
        before, colon, _ = lines[at].partition(":")
        lines[at] = f"{before}{colon or ':'} {choose.choice(WRONG)}"
    return "\n".join(lines)


def laughs(levels: int = 40, width: int = 9, merged: bool = False) -> str:
    """Aliases of aliases: a few lines that mean more than there are atoms."""
    lines = ["a0: &a0 " + ("{x: 1}" if merged else "[x, x]")]
    for level in range(1, levels):
        of = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{of}]}}" if merged else f"[{of}]"))
    return "\n".join(lines)
