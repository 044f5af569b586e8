"""What a verb returns to the command line."""

from __future__ import annotations

from dataclasses import dataclass, field

OK = 0
ROWS_LEFT = 1  # rows failed or are left
USAGE = 2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Result:
    """Exit code, and the JSON object that `--json` prints last."""

    exit_code: int = OK
    data: dict[str, object] = field(default_factory=dict)
