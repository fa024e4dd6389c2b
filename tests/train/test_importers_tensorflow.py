"""The reader of TensorFlow checkpoints against a writer of its own, and against every kind of damage."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tfswa.runtime.errors import BundleError
from tfswa.train.importers.tensorflow import read_checkpoint

TYPES = {"f4": 1, "f8": 2, "i4": 3, "i8": 9}
HEADER = b"\x08\x01\x1a\x02\x08\x01"  # one shard, little-endian, version 1

Tensors = Mapping[str, NDArray[Any]]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sealed(content: bytes, kind: int = 0) -> bytes:
    """A block's content with type and CRC, which is not read: a wheel has a SHA-256."""
    return content + bytes((kind,)) + bytes(4)


def block(pairs: list[tuple[bytes, bytes]], interval: int = 3) -> bytes:
    """A sealed block; every few keys one is written whole."""
    out, restarts, before = b"", [], b""
    for count, (key, value) in enumerate(pairs):
        shared = 0
        if count % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        rest = key[shared:]
        out += varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value
        before = key
    restarts = restarts or [0]
    out += b"".join(place.to_bytes(4, "little") for place in (*restarts, len(restarts)))
    return sealed(out)


def table(blocks: list[bytes]) -> bytes:
    """An index of sealed blocks."""
    out, handles = b"", []
    for number, one in enumerate(blocks):
        handles.append((bytes((number,)), varint(len(out)) + varint(len(one) - 5)))
        out += one
    meta, index = block([]), block(handles)
    footer = varint(len(out)) + varint(len(meta) - 5)
    footer += varint(len(out) + len(meta)) + varint(len(index) - 5)
    return out + meta + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def entry(value: NDArray[Any], offset: int, **changes: int) -> bytes:
    data = value.tobytes()
    numbers = {"kind": TYPES[value.dtype.str[1:]], "shard": 0, "offset": offset, "size": len(data)} | changes
    out = field(1, numbers["kind"])
    if value.ndim:
        out += field(2, b"".join(field(2, field(1, size)) for size in value.shape))
    out += field(3, numbers["shard"]) + field(4, numbers["offset"]) + field(5, numbers["size"])
    return out + b"\x35" + bytes(4)


def checkpoint(tensors: Tensors, per_block: int = 4) -> tuple[bytes, bytes]:
    pairs, data = [(b"", HEADER)], b""
    for name in sorted(tensors):
        pairs.append((name.encode(), entry(tensors[name], len(data))))
        data += tensors[name].tobytes()
    return table([block(pairs[i : i + per_block]) for i in range(0, len(pairs), per_block)]), data


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    random = np.random.default_rng(0)
    return {
        "conv/bias": random.standard_normal(5).astype(np.float32),
        "conv/kernel": random.standard_normal((2, 3, 1, 5)).astype(np.float32),
        "conv_1/bias": random.standard_normal(3),
        "conv_1/kernel": np.zeros((0, 4), np.float32),
        "counts": np.arange(300, dtype=np.int32),
        "global_step": np.array(1_500_000, np.int64),
    }


def equal(one: Tensors, two: Tensors) -> bool:
    return list(one) == list(two) and all(
        one[name].dtype == two[name].dtype and np.array_equal(one[name], two[name]) for name in one
    )


@pytest.mark.parametrize("per_block", [1, 2, 100])
def test_what_was_written_is_read(tensors: Tensors, per_block: int) -> None:
    assert equal(read_checkpoint(*checkpoint(tensors, per_block)), tensors)


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_of_the_index_is_one_error_or_none(tensors: Tensors, data: st.DataObject) -> None:
    index, numbers = checkpoint(tensors)
    part = bytearray(index)
    part[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BundleError):
        read_checkpoint(bytes(part), numbers)


@given(st.data())
def test_a_cut_file_is_found(tensors: Tensors, data: st.DataObject) -> None:
    index, numbers = checkpoint(tensors)
    cut = data.draw(st.integers(0, len(index) - 1))
    for parts in (
        (index[:cut], numbers),
        (index[cut + 1 :], numbers),
        (index, numbers[: cut % len(numbers)]),
    ):
        with pytest.raises(BundleError, match=r"TensorFlow checkpoint cannot be read.*fetch it again"):
            read_checkpoint(*parts)


@settings(max_examples=300)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_sealed_nonsense_is_one_error(content: bytes, value: bytes) -> None:
    nonsense = block([(b"", HEADER), (b"name", value)])
    for index in (table([sealed(content)]), table([nonsense]), content + table([])[-48:], content):
        with pytest.raises(BundleError) as error:
            read_checkpoint(index, b"12345678")
        assert "\n" not in str(error.value)


ONE = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (b"", "does not end as one does"),
        (table([]), "is empty"),
        (table([sealed(bytes(8), kind=1)]), r"compressed \(type 1\), only type 0 is read"),
        (table([block([(b"name", entry(ONE, 0))])]), "has no header"),
        (table([block([(b"", field(1, 2))])]), "has 2 shards, only 1 is read"),
        (table([block([(b"", field(1, 1) + field(2, 1))])]), "big-endian"),
        (table([block([(b"", HEADER)]), block([(b"", HEADER)])]), "not in order at b''"),
        (table([sealed((99).to_bytes(4, "little"))]), "block of 4 bytes with 99 restarts"),
        (table([sealed(b"\x05\x01\x00a" + bytes(8))]), "shares 5 bytes with a key of 0"),
        (table([block([(b"", b"\xff" * 11)])]), "more than 64 bits"),
        (table([block([(b"", b"\x0b")])]), "field 1 of wire type 3"),
        (table([block([(b"", field(1, b"x"))])]), "a text where a number belongs"),
    ],
)
def test_foreign_indexes_are_refused(index: bytes, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        read_checkpoint(index, ONE.tobytes())


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (entry(ONE, 0, kind=7), "'name' is of type 7, which is not read"),
        (entry(ONE, 0, shard=1), "'name' is in shard 1"),
        (entry(ONE, 8), "'name' ends at byte 16, the data is 8 bytes long"),
        (entry(ONE, 0, size=4), r"'name' is \[2\] of f4 in 4 bytes"),
        (entry(ONE, 0, size=12), "more than the 8 bytes of its data"),
        (entry(ONE, 0) + field(7, b""), "'name' is stored in slices"),
        (field(1, 1) + field(2, 5), "a number where a message belongs"),
        (field(1, 1) + field(2, field(2, field(1, 2**63)) * 2), "'name' is of shape"),
        (field(1, 1) + field(2, field(2, field(1, 1)) * 9), "'name' is of shape"),
    ],
)
def test_foreign_entries_are_refused(value: bytes, match: str) -> None:
    index = table([block([(b"", HEADER), (b"name", value)])])
    with pytest.raises(BundleError, match=match):
        read_checkpoint(index, ONE.tobytes())
