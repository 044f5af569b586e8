"""Doing something without the rights that root has, so that the modes of files count for it too."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

T = TypeVar("T")
_VERSION_3 = 0x20080522  # of capset's header

linux = pytest.mark.skipif(sys.platform != "linux", reason="a thread gives up its capabilities")


def without_rights(action: Callable[[], T]) -> T:
    """What `action` returns in a thread that has given up its capabilities."""

    def run() -> T:
        header, none = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0, ctypes.get_errno()
        return action()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()
