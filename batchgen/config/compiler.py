"""What torch makes code of graphs with."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec


def missing_compiler(device: str) -> str:
    """Why blocks cannot be compiled on this machine for such a device; empty if they can."""
    if device != "cpu":
        return "" if find_spec("triton") else "triton is not installed"
    named = os.environ.get("CXX")
    found = shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")
    return "" if found else "there is no C++ compiler (CXX, g++ or clang++)"
