"""Fill in the measured columns of KILLS.md: `BATCHGEN_KILLS_TABLE=t.jsonl make test-slurm`, then
`python tests/slurm/kills_table.py t.jsonl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("KILLS.md")
COLUMNS = ("lost", "twice", "submissions", "attempts", "wasted_s")


def fill(text: str, records: dict[str, dict[str, object]]) -> str:
    """The table's lines `| case | how | lost | twice | submissions | attempts | wasted | test |`
    with what was measured last."""
    lines = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        record = records.get(cells[0])
        if record is not None and len(cells) == 3 + len(COLUMNS):
            cells[2:-1] = [str(record[name]) for name in COLUMNS]
            line = f"| {' | '.join(cells)} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def main(path: str) -> None:
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    TABLE.write_text(fill(TABLE.read_text(), {record["case"]: record for record in records}))


if __name__ == "__main__":
    main(sys.argv[1])
