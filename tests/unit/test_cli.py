"""The command line in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`batchgen ... | head -1`"""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "batchgen", "bench", "schedule", "--nodes", "4"]
    done = subprocess.run(
        [*argv, "--seeds", "1", "--costs", "giant"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert done.stderr == ""
