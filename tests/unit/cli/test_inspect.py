"""`inspect` of files that others made, in the worst of intentions: an error in words, exit code 2,
and no more memory than a note takes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planned_run import row

from batchgen.cli.main import main
from batchgen.media import formats
from batchgen.media.note import Origin, note_of

GOOD = json.loads(note_of(row(3, prompt="a fox"), Origin("wan", "sampled:01")))
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(16 * 49))
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", rows)


def text(stored: bytes) -> bytes:
    return chunk(b"iTXt", b"batchgen\0\0\0\0\0" + stored)


def noted(**changes: Any) -> bytes:
    """A PNG whose note has some values changed, the request's by their name."""
    stored = json.loads(json.dumps(GOOD))
    for name, value in changes.items():
        (stored if name in ("family", "request") else stored["request"])[name] = value
    return png(text(json.dumps(stored).encode()))


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """EXIF of one directory with entries (tag, type, count, value)."""
    body = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body


def webp(exif: bytes) -> bytes:
    return b"RIFF\xff\xff\xff\xffWEBPEXIF" + struct.pack("<I", len(exif)) + exif


def jpeg(exif: bytes) -> bytes:
    body = b"Exif\0\0" + exif
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(body) + 2) + body + b"\xff\xd9"


def mp4_box(name: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(data) if length is None else length) + name + data


GIF = b"GIF89a" + bytes(7)  # a header without colours
BOMB = zlib.compress(bytes(10**8), 9)
FILES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "torn"),
    "not.png": (b"GIF89a" + bytes(20), "is no PNG"),
    "cut.png": (png(text(bytes(100)))[:80], "torn"),
    "headless.png": (SIGNATURE + b"\0\0", "torn"),
    "endless.png": (SIGNATURE + b"\xff\xff\xff\xffiTXtbatchgen\0\0\0\0\0{}", "a note has at most"),
    "bomb.png": (png(chunk(b"zTXt", b"batchgen\0\0" + BOMB)), "carries no metadata"),
    "packed.png": (png(chunk(b"iTXt", b"batchgen\0\1\0\0\0" + BOMB)), "carries no metadata"),
    "huge.png": (png(text(b" " * (2**24 + 1))), "a note has at most"),
    "latin.png": (png(text(b"\xff\xfe")), "decode"),
    "deep.png": (png(text(b"[" * 10**5)), "RecursionError"),
    "digits.png": (png(text(b"9" * 10**5)), "metadata are not those"),
    "list.png": (png(text(b"[1, 2]")), "metadata are not those"),
    "others.png": (png(text(b'{"format": "ComfyUI"}')), "of the format 'ComfyUI'"),
    "long.png": (png(text(json.dumps({"format": "x" * 10**6}).encode())), "of the format 'xxx"),
    "pairs.png": (noted(request=[["prompt", "a"]]), "request is an object"),
    "family.png": (noted(family=["wan"]), "family, weights and row_key are text"),
    "prompt.png": (noted(prompt={"a": 1}), "prompt = {'a': 1}"),
    "truth.png": (noted(num_steps=True), "num_steps = True"),
    "nan.png": (noted(guidance_scale=float("nan")), "guidance_scale = nan"),
    "far.png": (noted(seed=10**400), "seed = 1000"),
    "below.png": (noted(width=-1), "width = -1"),
    "half.png": (noted(prompt="\ud800"), "prompt = '\\ud800'"),
    "unknown.png": (noted(surprise=1), "'surprise', which is no field of a request"),
    "override.png": (noted(format="${oc.env:HOME}"), "format = '${oc.env:HOME}'"),
    "cut.jpg": (b"\xff\xd8\xff\xe1\x00\x50Exif\0\0MM", "torn"),
    "not.jpg": (png(), "is no JPEG"),
    "noise.jpg": (b"\xff\xd8" + bytes(99), "torn"),
    "short.jpg": (jpeg(b"MM"), "torn"),
    "number.jpg": (jpeg(tiff((0x8769, 4, 1, 8), (0x9286, 4, 1, 10**9))), "torn"),
    "outside.jpg": (jpeg(tiff((0x8769, 4, 1, 2**32 - 1))), "carries no metadata"),
    "many.webp": (webp(tiff(*((t, 7, 2**24, 0) for t in range(65_535)))), "carries no metadata"),
    "cut.webp": (b"RIFF\0\0\0\0WEBPEXIF\0\xff\0\0MM", "torn"),
    "not.webp": (b"RIFF\0\0\0\0WAVE" + bytes(50), "is no WebP"),
    "endless.webp": (b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff", "a note has at most"),
    "not.gif": (png(), "is no GIF"),
    "cut.gif": (GIF + b"\x21\xfe\xffabc", "torn"),
    "endless.gif": (GIF + b"\x21\xfe" + (b"\xff" + b" " * 255) * 67_000, "more than"),
    "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "is no MP4"),
    "long.mp4": (mp4_box(b"ftyp", b"isom") + mp4_box(b"moov", b"", 99), "torn"),
    "zero.mp4": (mp4_box(b"ftyp", b"isom") + mp4_box(b"moov", mp4_box(b"udta", b"", 3)), "torn"),
    "a.npy": (b"\x93NUMPY", "carries no metadata"),
    "a.exe": (b"MZ", "'.exe'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_others_is_an_error_in_words(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, words = FILES[name]
    (tmp_path / name).write_bytes(data)
    assert main(["inspect", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert name in said and words in said and len(said) < 1000


def test_no_more_memory_than_a_note_takes(tmp_path: Path) -> None:
    """All of them in a process that may have little more than it has at its start."""
    for name, (data, _) in FILES.items():
        (tmp_path / name).write_bytes(data)
    code = (
        "import resource, sys\n"
        "from batchgen.cli.main import main\n"
        "main(['inspect', sys.argv[1]])\n"  # imports what it needs
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert {main(['inspect', name]) for name in sys.argv[1:]} == {2}\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)\n"
    )
    files = [str(tmp_path / name) for name in FILES]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert int(done.stdout) < 128 * 1024  # KiB


def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.frames").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("folder.png", ""), ("empty.frames", "00000.png"), ("pipe.png", "regular")):
        assert main(["inspect", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert name in said and words in said


def test_control_characters_are_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(noted(prompt="a\x1b[2J fox\n雪", family="w\x1b]0;x\x07"))
    assert main(["inspect", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    assert r"a\x1b[2J fox" in shown and "\n雪" in shown and "\x1b" not in shown


def test_a_row_that_is_no_row_of_a_manifest_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = "ab" * 32
    for request, words in (
        ({}, "prompt"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"prompt": "a", "image": image}, f"image: {image}, its sha256"),
    ):
        (tmp_path / "a.png").write_bytes(noted(request=request))
        argv = ["inspect", str(tmp_path / "a.png"), "--manifest", str(tmp_path / "m.parquet")]
        assert main(argv) == 2, request
        assert words in capsys.readouterr().err
        assert not (tmp_path / "m.parquet").exists()


def test_files_of_every_format_are_read(tmp_path: Path) -> None:
    """The other tests are about refusals."""
    for name in set(formats.names()) - {"npy"}:
        module = formats.get(name)
        path = tmp_path / f"a{module.EXTENSION}"
        frames = np.zeros((1, 16, 16, 3), np.uint8)
        module.write(frames, path, fps=8, quality=8, note=json.dumps(GOOD))
        assert main(["inspect", str(path)]) == 0, name
