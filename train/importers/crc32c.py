"""CRC-32C (Castagnoli) of large arrays of bytes, by numpy alone.

A CRC is linear: with a register that starts at 0, leading zeros leave it 0, and the register after ``A B``
is that after ``A``, moved on over len(B) zeros, XOR that after ``B``. So a message is cut into lanes of one
width, every lane is computed in the same numpy call, and neighbors are joined pair by pair::

    0 0 M M M M M M | M M M M M M M M | M M M M M M M M | M M M M M M M M      lanes x width bytes
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # reflected
WHOLE = 0xFFFFFFFF

Words = NDArray[np.uint32]


def crc32c(message: bytes | memoryview) -> int:
    """CRC-32C as of RFC 3720, appendix B.4; ``crc32c(b"123456789")`` is 0xE3069283."""
    data = np.frombuffer(message, np.uint8)
    if len(data) < 4:
        register = WHOLE
        for byte in data.tolist():
            register = int(TABLE[(register ^ byte) & 0xFF]) ^ (register >> 8)
        return register ^ WHOLE
    lanes = 2 ** math.ceil(math.log2(len(data)) / 2)
    width = math.ceil(len(data) / lanes)
    padded = np.zeros(lanes * width, np.uint8)
    padded[len(padded) - len(data) :] = data
    # A register that starts with ones is one that starts with zeros and meets four inverted bytes.
    padded[len(padded) - len(data) :][:4] ^= 0xFF
    # 32 more lanes begin with one bit each and meet zeros: they become the step over ``width`` zeros.
    registers = np.concatenate((np.zeros(lanes, np.uint32), ONE_BIT))
    columns = np.zeros((width, lanes + 32), np.uint8)
    columns[:, :lanes] = padded.reshape(lanes, width).T
    for column in columns:
        registers = TABLE[(registers ^ column) & 0xFF] ^ (registers >> 8)
    registers, step = registers[:lanes], registers[lanes:]
    while len(registers) > 1:
        registers = _moved(registers[0::2], step) ^ registers[1::2]
        step = _moved(step, step)
    return int(registers[0]) ^ WHOLE


def masked(crc: int) -> int:
    """The form in which TensorFlow and LevelDB store a CRC, so that a CRC of CRCs is not weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & WHOLE


def _moved(registers: Words, step: Words) -> Words:
    """Registers after a run of zeros, given what the run makes of every bit."""
    moved = np.zeros_like(registers)
    for bit in range(32):
        moved ^= (registers >> bit & 1) * step[bit]
    return moved


def _table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> np.uint32(1) ^ (table & np.uint32(1)) * np.uint32(POLYNOMIAL)
    return table


TABLE = _table()
ONE_BIT = np.uint32(1) << np.arange(32, dtype=np.uint32)
