"""Makes a contact sheet of a run: ``python -m batchgen.tiny.sheet RUN OUT.png``."""

from __future__ import annotations

import argparse
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from batchgen import catalog
from batchgen.media import formats

CELL = 96  # pixels of one frame on the sheet
GAP = 3  # white pixels after a frame: without them a row of frames looks like one picture
CAPTION = 18  # pixels above the frames
FRAMES = 5  # of each clip, evenly spaced
COLUMNS = 2


def contact_sheet(run: Path) -> Image.Image:
    """All published rows of a run, in manifest order: prompt, score and a few frames of each."""
    rows = catalog.open_runs(run)
    published = rows[rows.status == "ok"].sort_values("row_index").to_dict("records")
    strips = [
        _strip(formats.get(row["format"]).read(run / row["media_path"]), _caption(row))
        for row in published
    ]
    blank = np.full((CAPTION + CELL, FRAMES * (CELL + GAP), 3), 255, np.uint8)
    strips += [blank] * (-len(strips) % COLUMNS)
    lines = [np.hstack(strips[i : i + COLUMNS]) for i in range(0, len(strips), COLUMNS)]
    return Image.fromarray(np.vstack(lines))


def _caption(row: Mapping[Hashable, Any]) -> str:
    judged = row["score"] is not None and not np.isnan(row["score"])
    return f"{row['prompt']}   {row['score']:.2f}" if judged else str(row["prompt"])


def _strip(frames: np.ndarray, caption: str) -> np.ndarray:
    """uint8 ``(CAPTION + CELL, FRAMES * (CELL + GAP), 3)`` of frames ``(f, h, w, 3)``."""
    strip = Image.new("RGB", (FRAMES * (CELL + GAP), CAPTION + CELL), "white")
    chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    for place, index in enumerate(chosen):
        frame = Image.fromarray(frames[index]).resize((CELL, CELL), Image.Resampling.NEAREST)
        strip.paste(frame, (place * (CELL + GAP), CAPTION))
    ImageDraw.Draw(strip).text((3, 3), caption, fill="black")
    return np.asarray(strip)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m batchgen.tiny.sheet", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("out", type=Path, help="picture to write")
    options = parser.parse_args(arguments)
    contact_sheet(options.run).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
