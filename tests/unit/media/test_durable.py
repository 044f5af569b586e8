"""A media file is whole under its final name or absent, and never outside the run folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_folder import RunFolder, make_request, render

from batchgen.durable import digest_file, write_json
from batchgen.errors import MediaError
from batchgen.media import formats
from batchgen.media.publish import is_temporary, media_path, write_media
from batchgen.paths import RunPaths
from batchgen.records import Attempt

ATTEMPT = Attempt(2, 1, 0, 3)


@pytest.mark.parametrize("name", formats.names())
def test_media_say_what_lies_on_disk(name: str, tmp_path: Path) -> None:
    """Path, size and digest are those of the file; the frames' digest is of the raw pixels."""
    run = RunPaths(tmp_path)
    rendered = render(make_request(7, name))
    media = write_media(rendered, run, ATTEMPT, total_rows=10)
    path = tmp_path / media.path
    assert media.path == f"media/row0007-s2t1r0p3{formats.get(name).EXTENSION}"
    assert digest_file(path) == (media.sha256, media.bytes)
    assert media.frames_sha256 == hashlib.sha256(rendered.frames.tobytes()).hexdigest()
    assert media.num_frames == len(formats.get(name).read(path)) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_a_folder_of_frames_is_hashed_over_its_files(tmp_path: Path) -> None:
    rendered = render(replace(make_request(0, "frames"), num_frames=3))
    media = write_media(rendered, RunPaths(tmp_path), ATTEMPT, total_rows=1)
    files = sorted((tmp_path / media.path).iterdir())
    lines = "".join(f"{f.name} {hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in files)
    assert len(files) == media.num_frames == 3
    assert media.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert media.bytes == sum(f.stat().st_size for f in files)


def test_equal_frames_of_another_memory_layout_are_equal(tmp_path: Path) -> None:
    """The engine hands over views; a transposed one must neither fail nor hash otherwise."""
    rendered = render(make_request(0))
    twisted = np.asfortranarray(rendered.frames)
    first = write_media(rendered, RunPaths(tmp_path), Attempt(1, 0, 0, 0), 1)
    second = write_media(
        replace(rendered, frames=twisted), RunPaths(tmp_path), Attempt(1, 0, 0, 1), 1
    )
    assert (first.sha256, first.frames_sha256) == (second.sha256, second.frames_sha256)


@pytest.mark.parametrize("name", ["png", "frames"])
def test_a_row_is_committed_in_the_one_safe_order(
    name: str, make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Media synced, renamed, its folder synced; only then the journal line, synced at once."""
    run_folder = make_run_folder(1, format_name=name)
    journal = run_folder.journal(run_folder.submit())
    run_folder.run.media.mkdir()
    calls: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "write")}

    def fsync(descriptor: int) -> None:
        calls.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real["fsync"](descriptor)

    def replace_(source: object, target: object, **_: object) -> None:
        calls.append(f"rename {Path(str(target)).name}")
        real["replace"](source, target)

    def write(descriptor: int, data: bytes) -> int:
        calls.append(f"write {data[9:15].decode()}")
        return int(real["write"](descriptor, data))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace_)
    monkeypatch.setattr(os, "write", write)
    run_folder.render(journal, 0)
    monkeypatch.undo()
    final = f"row0000-s1t0r0p0{formats.get(name).EXTENSION}"
    temporary = final.replace("p0.", "p0.tmp.")
    inside = ["fsync 00000.png"] if name == "frames" else []
    media = [*inside, f"fsync {temporary}", f"rename {final}", "fsync media"]
    assert calls == ['write start"', *media, "write commit", "fsync 0-r0-0.jsonl"]


@pytest.mark.parametrize(
    "row_id", ["../x", "a/b", "/etc/passwd", "a\0b", "", "a\n", "ä", "x" * 129]
)
def test_no_row_id_leads_out_of_the_run(row_id: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be a file name"):
        media_path(RunPaths(tmp_path), replace(make_request(0), row_id=row_id), ATTEMPT, 1)


@pytest.mark.parametrize("row_id", ["..", ".", "...", "-rf", ".hidden"])
def test_odd_but_legal_row_ids_stay_inside(row_id: str, tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    rendered = render(replace(make_request(0), row_id=row_id))
    media = write_media(rendered, run, ATTEMPT, 1)
    assert (tmp_path / media.path).resolve().parent == run.media.resolve()


def test_large_runs_fan_out(tmp_path: Path) -> None:
    rendered = render(make_request(5000))
    media = write_media(rendered, RunPaths(tmp_path), ATTEMPT, total_rows=10_000)
    assert media.path == "media/01/row5000-s2t1r0p3.png"


@pytest.mark.parametrize(
    "point", ["media.before_write", "media.after_write", "media.before_rename"]
)
def test_a_full_disk_is_the_rows_own_error_and_leaves_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunPaths(tmp_path)
    monkeypatch.setenv("BATCHGEN_FAILPOINT", f"{point}:*:enospc")
    with pytest.raises(MediaError, match=r"row 'row0000'.*No space left") as caught:
        write_media(render(make_request(0)), run, ATTEMPT, 1)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(run.media.iterdir()) == []


def test_an_encoder_that_fails_is_the_rows_own_error(tmp_path: Path) -> None:
    """A still format cannot hold a clip."""
    rendered = render(replace(make_request(0, "png"), num_frames=2))
    with pytest.raises(MediaError, match="holds one frame, not 2"):
        write_media(rendered, RunPaths(tmp_path), ATTEMPT, 1)


def test_ffmpeg_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    with pytest.raises(OSError, match=r"gone.*a\.mp4.*ffmpeg ended with"):
        formats.get("mp4").write(render(make_request(0)).frames, folder / "a.mp4", fps=8, quality=8)


def test_an_attempt_that_writes_a_row_again_replaces_its_own_file(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """A second try inside one attempt; for a folder of frames too."""
    for name in ("png", "frames"):
        run_folder = make_run_folder(1, format_name=name)
        first = write_media(render(run_folder.requests[0]), run_folder.run, ATTEMPT, 1)
        second = write_media(render(run_folder.requests[0]), run_folder.run, ATTEMPT, 1)
        assert first == second
        assert digest_file(run_folder.run.root / second.path) == (second.sha256, second.bytes)


def test_temporary_names_are_told_from_final_ones() -> None:
    assert is_temporary("row-s1t0r0p0.tmp.png")
    assert is_temporary("row-s1t0r0p0.tmp.frames")
    assert not is_temporary("row.tmp-s1t0r0p0.png")


def test_json_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": "ü"})
    assert path.read_text() == '{\n "a": "ü"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n "a": "ü"\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_json(tmp_path / "folder", {})
    assert str(caught.value) == f"[Errno 21] Is a directory: '{tmp_path / 'folder'}'"
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", "folder"}
