"""What has to be known of an ONNX file before anything loads it, read without onnx.

A protobuf message is a row of fields: a key (number and wire type), then a number, or a length and bytes. Of
``ModelProto`` the metadata is read, and all tensors are looked at: none may keep its values in another file,
whose content no hash of this one would cover.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfswa.runtime.errors import BundleError
from tfswa.runtime.model.limits import ENTRIES, FIELDS, METADATA_BYTES, NESTING

_WITHIN = {  # which fields of a message hold which messages, by onnx.proto
    "model": {7: "graph", 8: "opset", 14: "pair", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph", 3: "pair", 4: "pair"},
    "function": {7: "node", 9: "opset", 11: "attribute", 12: "value", 14: "pair"},
    "graph": {
        1: "node",
        5: "tensor",
        11: "value",
        12: "value",
        13: "value",
        14: "note",
        15: "sparse",
        16: "pair",
    },
    "node": {5: "attribute", 9: "pair", 10: "note"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        14: "type",
        15: "type",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {16: "pair"},
    "value": {2: "type", 4: "pair"},
    "type": {1: "shaped", 4: "element", 5: "element", 8: "shaped", 9: "element"},
    "element": {1: "type", 2: "type"},
    "shaped": {2: "shape"},
    "shape": {1: "size"},
    "note": {2: "pair"},
}
_METADATA, _EXTERNAL_DATA, _DATA_LOCATION = 14, 13, 14
_BYTES = 2  # wire type of what has a length
_DOMAIN = {"node": 7, "function": 10}  # which field names whose operators they are
DOMAINS = frozenset({b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft"})  # that backends bring themselves


def read_metadata(path: Path, key: str) -> str | None:
    """The text that a model carries under a key; None where there is none.

    Raises:
        BundleError: it is no ONNX file, or damaged.
    """
    with _opened(path) as data:
        for count, (number, wire, start, stop) in enumerate(_fields(data, 0, len(data))):
            if count == ENTRIES:
                raise ValueError(f"more than {ENTRIES} fields")
            if number == _METADATA and wire == _BYTES:
                pair = {n: (a, b) for n, w, a, b in _fields(data, start, stop) if w == _BYTES}
                name, value = pair.get(1, (0, 0)), pair.get(2, (0, 0))
                if data[slice(*name)] == key.encode():
                    if value[1] - value[0] > METADATA_BYTES:
                        raise ValueError(f"{value[1] - value[0]} bytes of {key}")
                    return data[slice(*value)].decode()
    return None


def check_whole(path: Path) -> None:
    """See that a graph holds all its numbers itself, and asks for no operators that others would bring.

    Raises:
        BundleError: a tensor is in another file, an operator is custom, it has more fields than a library
            should make objects of, or it is no ONNX file.
    """
    with _opened(path) as data:
        left, count = [("model", 0, len(data), 0)], 0
        used: dict[str, set[bytes]] = {"node": set(), "function": set()}
        while left:
            kind, start, stop, depth = left.pop()
            if depth > NESTING * len(_WITHIN):
                raise ValueError(f"graphs in graphs, more than {NESTING} deep")
            inside, domain = _WITHIN.get(kind, {}), _DOMAIN.get(kind)
            for number, wire, first, last in _fields(data, start, stop):
                count += 1
                if count > FIELDS:
                    raise ValueError(f"more than {FIELDS} fields: a library keeps some 150 bytes of each")
                within = inside.get(number)
                if within is not None and wire == _BYTES:
                    left.append((within, first, last, depth + 1))
                elif number == domain and wire == _BYTES:
                    used[kind].add(data[first:last])
                elif kind == "tensor" and (
                    number == _EXTERNAL_DATA or (number == _DATA_LOCATION and data[first:last] != b"\0")
                ):
                    raise BundleError(
                        f"{path} keeps numbers in another file, which no hash covers: not opened; export it "
                        "with `tfx export`, which writes one file"
                    )
        foreign = sorted(used["node"] - used["function"] - DOMAINS)
        if foreign:
            raise BundleError(
                f"{path} has custom operators of {foreign[0][:40].decode('utf-8', 'replace')!r}, which only "
                "code of others could run: not opened; export it with `tfx export`, which uses ONNX's own"
            )


@contextmanager
def _opened(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not an ONNX file, or damaged: {error}") from error


def _fields(data: mmap.mmap, place: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where the content is, of every field of a message.

    Numbers of one byte, which are nearly all, are read here: a call for each would take twice as long, and
    every start of a command waits for it.
    """
    while place < stop:
        key, place = (data[place], place + 1) if data[place] < 0x80 else _varint(data, place, stop)
        number, wire = key >> 3, key & 7
        if number == 0:  # no message has it; rows of zeros would be read for minutes
            raise ValueError("a field of number 0")
        if wire in (0, _BYTES):
            short = place < stop and data[place] < 0x80
            value, end = (data[place], place + 1) if short else _varint(data, place, stop)
            if wire == _BYTES:
                place, end = end, end + value
        else:
            end = place + {1: 8, 5: 4}.get(wire, stop)
        if end > stop:
            raise ValueError(f"field {number} of wire type {wire} runs past the end")
        yield number, wire, place, end
        place = end


def _varint(data: mmap.mmap, place: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while place < stop and shift <= 63:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("a number runs past the end")
