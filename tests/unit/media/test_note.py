"""What media files carry: written by us, read by the libraries that others read them with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from planned_run import row

from batchgen.errors import MediaError
from batchgen.media import formats
from batchgen.media.note import Origin, note_of, parse_note
from batchgen.media.publish import write_media
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Rendered, RowStats

ORIGIN = Origin("wan", "sampled:0123")
PROMPT = 'a "red" fox; = # \\ <b>\nin the snow, 雪 🦊'
CARRIED = [name for name in formats.names() if name != "npy"]


def frames(name: str) -> np.ndarray:
    count = 1 if name in ("png", "jpeg") else 3
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("name", CARRIED)
def test_a_file_carries_its_request_whatever_the_prompt(name: str, tmp_path: Path) -> None:
    module = formats.get(name)
    request = row(3, prompt=PROMPT, negative_prompt="雨", tags="private", guidance_scale=4.5)
    paths = [tmp_path / f"{which}{module.EXTENSION}" for which in ("with", "again", "without")]
    for path, note in zip(paths, [note_of(request, ORIGIN)] * 2 + [""], strict=True):
        module.write(frames(name), path, fps=8, quality=10, note=note)
    found = parse_note(module.read_note(paths[0]))
    assert found.row() == {
        "prompt": PROMPT, "negative_prompt": "雨", "seed": 3, "width": 16, "height": 16,
        "num_frames": 1, "fps": 8, "num_steps": 10, "guidance_scale": 4.5,
    }  # fmt: skip
    assert (found.origin, found.row_key) == (ORIGIN, "k")
    assert module.read_note(paths[2]) == ""
    assert np.array_equal(module.read(paths[0]), module.read(paths[2])), "pixels stay"
    if name != "frames":
        assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_nothing_of_the_row_s_place_in_a_run_is_in_the_file() -> None:
    stored = json.loads(note_of(row(3, tags="t"), ORIGIN))
    other = json.loads(note_of(row(3, row_id="b", row_index=9, tags="u", cost_s=4.0), ORIGIN))
    assert stored == other


def test_others_read_it(tmp_path: Path) -> None:
    """As their users would: Pillow, and ffmpeg's own listing."""
    note = note_of(row(1, prompt="a fox"), ORIGIN)
    for name in ("png", "jpeg", "webp", "mp4"):
        module = formats.get(name)
        module.write(frames(name), tmp_path / f"a{module.EXTENSION}", fps=8, quality=8, note=note)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text["batchgen"] == note
    for name in ("jpg", "webp"):
        with Image.open(tmp_path / f"a.{name}") as picture:
            stored = picture.getexif().get_ifd(0x8769)[0x9286]
        assert stored[8:].decode("utf-16-be") == note
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "a.mp4"], capture_output=True, text=True
    )
    assert '"prompt":"a fox"' in said.stderr.split("comment")[1]


# characters, of which JPEG stores two bytes each and an mp4 one or more
@pytest.mark.parametrize(
    ("name", "fits", "too_long"),
    [
        ("jpeg", 30_000, 40_000), ("mp4", 90_000, 110_000), ("png", 10**6, 2**24),
        ("webp", 10**6, 2**23), ("gif", 10**6, 2**24), ("frames", 10**5, 2**24),
    ],
)  # fmt: skip
def test_a_request_too_long_for_the_file_costs_the_note_and_not_the_row(
    name: str, fits: int, too_long: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, module = RunPaths(tmp_path), formats.get(name)
    for index, length in enumerate((fits, too_long)):
        request = row(index, prompt="x" * length, format=name, row_id=f"r{index}")
        rendered = Rendered(request, frames(name)[:1], RowStats())
        note = note_of(request, ORIGIN)
        media = write_media(rendered, run, Attempt(1, 0, 0, 0), 2, note)
        assert module.read(tmp_path / media.path).shape == (1, 16, 16, 3)
        carried = module.read_note(tmp_path / media.path)
        assert carried == (note if length == fits else "")
    (said,) = caplog.messages
    assert f"row r1: its request, {len(note)} characters, does not fit into a {name} file" in said


def test_the_longest_exif_is_told_to_the_byte(tmp_path: Path) -> None:
    module, path = formats.get("jpeg"), tmp_path / "a.jpg"
    length = max(n for n in range(32_000, 33_000) if module.carries("x" * n))
    module.write(frames("jpeg"), path, fps=8, quality=8, note="x" * length)
    assert module.read_note(path) == "x" * length
    with pytest.raises(ValueError, match="too long"):
        module.write(frames("jpeg"), path, fps=8, quality=8, note="x" * (length + 1))


@pytest.mark.parametrize("text", ["", "{}", "[]", "parameters", '{"format":"batchgen request 9"}'])
def test_other_texts_are_no_notes(text: str) -> None:
    with pytest.raises(MediaError, match="metadata"):
        parse_note(text)
