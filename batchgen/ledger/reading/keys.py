"""Row keys as numbers, which is how the ledger compares them: 8 bytes for each row and each line.

A key is 64 hexadecimal digits; the first 16 are enough, since only keys of one row are ever
compared.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

KEY_TYPE = np.dtype(np.uint64)
DIGITS = 16
HEX = np.full(256, 16, np.uint8)  # value of each digit; 16 for what is none
HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_PLAIN = re.compile(rb"[0-9a-f]{16}")
_WORTH = 16 ** np.arange(DIGITS - 1, -1, -1, dtype=KEY_TYPE)


def key_number(key: bytes) -> int:
    """The number of a key; of one that is not hexadecimal, as no plan has it, a digest."""
    head = key[:DIGITS]
    if _PLAIN.fullmatch(head):
        return int(head, 16)
    return int.from_bytes(hashlib.sha256(head).digest()[:8], "little")


def numbers_of_digits(digits: np.ndarray) -> np.ndarray:
    """The numbers (KEY_TYPE) of keys by the values of their digits (uint8, one row a key)."""
    numbers: np.ndarray = digits[:, :DIGITS] @ _WORTH
    return numbers
