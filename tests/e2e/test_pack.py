"""Media in tars: committed as files are, read by member, checked, mended; kills at every step."""

from __future__ import annotations

import hashlib
import io
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_calls import AT_ONCE, NULL, Done, JobFolder, make_job_folder, recorded, rows_of
from PIL import Image
from quick_cases import first_quick

from batchgen import catalog
from batchgen.errors import RunStateError
from batchgen.media.stored import IN, MediaPlace
from batchgen.paths import RunPaths

PACK = ("output.pack=tar", "output.pack_mib=0.0035")  # two rows a tar
ROWS: list[dict[str, Any]] = [
    {"row_id": f"row-{i}", "prompt": f"{i}", "seed": i, "num_frames": 1} for i in range(6)
]
ROWS.append({**ROWS[2], "row_id": "again"})  # shares the media of row-2
SIZE = ("row_defaults.width=16", "row_defaults.height=16")
KILLS = [
    "tar.before_append:2:kill",
    "tar.torn:3:kill",  # half of the second member is written
    "tar.after_append:2:kill",
    "tar.after_sync:2:kill",
    "journal.before_append:2:kill",
    "journal.torn:2:kill",
    "journal.after_append:2:kill",
]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    for name, value in AT_ONCE.items():
        monkeypatch.setenv(name, value)
    return make_job_folder(tmp_path, ROWS)


def render(work: JobFolder, *overrides: str) -> RunPaths:
    done = work.run_here(NULL, *SIZE, *overrides)
    assert done.code == 0, done.err
    return done.run


def members(run: RunPaths) -> dict[str, bytes]:
    """What a reader of tars finds: name of a tar and of a member -> bytes."""
    found = {}
    for path in sorted(run.media.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                found[f"media/{path.name}{IN}{member.name}"] = data.read()
    return found


def verify(work: JobFolder, run: RunPaths, *options: str) -> Done:
    return work.here("verify", str(run.root), *options, "--json")


def kinds(done: Done) -> list[str]:
    return sorted(finding["kind"] for finding in done.json["findings"])


def test_tars_hold_the_files_that_rows_would_have(work: JobFolder) -> None:
    direct, packed = render(work), render(work, *PACK)
    assert recorded(packed) == recorded(direct)
    rows = rows_of(packed)
    found = members(packed)
    assert {*rows.media_path} == {*found}
    assert len([*packed.media.glob("*.tar")]) == 3
    assert all(path.suffix == ".tar" for path in packed.media.iterdir())
    for row in rows.to_dict("records"):
        data = found[row["media_path"]]
        assert hashlib.sha256(data).hexdigest() == row["media_sha256"]
        with (packed.root / MediaPlace.of_row(row).file).open("rb") as tar:
            tar.seek(row["media_offset"])
            assert tar.read(row["media_bytes"]) == data
    done = verify(work, packed)
    assert (done.code, done.json["files"], kinds(done)) == (0, 6, [])
    assert not rows_of(direct).media_offset.any()


def test_media_are_opened_from_a_frame(work: JobFolder) -> None:
    for run in (render(work), render(work, *PACK)):
        frame = catalog.open_runs(run.root)
        for _, row in frame.iterrows():
            with catalog.open_media(run.root, row) as file:
                assert Image.open(io.BytesIO(file.read())).size == (16, 16)
        with pytest.raises(RunStateError, match="row 'row-0' is failed: it has no media"):
            catalog.open_media(run.root, {**frame.loc[0], "status": "failed"})


def test_the_report_has_files_that_a_page_can_open(work: JobFolder) -> None:
    run = render(work, *PACK)
    page, rows = run.report.read_text(), rows_of(run)
    assert IN not in page.split("</style>")[-1].split("<script")[1]
    for row in rows.itertuples():
        name = row.media_path.partition(IN)[2]
        assert f"report_media/{name}" in page
        data = (run.report_media / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row.media_sha256
    retried = work.here("retry", str(run.root), "--rows", "row-0")
    assert retried.code == 0, retried.err
    names = {path.name for path in run.report_media.iterdir()}
    assert names == {*rows_of(run).media_path.str.partition(IN)[2]}  # none of the old ones


def test_members_are_inspected_and_exported(work: JobFolder, tmp_path: Path) -> None:
    direct, run = render(work), render(work, *PACK)
    (path,) = rows_of(run).query("row_id == 'row-3'").media_path
    assert work.here("inspect", str(run.root / path), "--json").json["request"]["seed"] == 3
    tar = run.root / path.partition(IN)[0]
    for file, message in ((tar, "holds many files"), (f"{tar}{IN}x.png", "has no member 'x.png'")):
        done = work.here("inspect", str(file))
        assert done.code == 2 and message in done.err
    exported = []
    for one in (direct, run):
        out = tmp_path / one.root.name / "out"
        done = work.here("export", str(one.root), "--to", "imagefolder", str(out))
        assert done.code == 0, done.err
        exported.append({p.name: p.read_bytes() for p in out.glob("part-*/*.png")})
    assert exported[0] == exported[1] and len(exported[0]) == 7


@pytest.mark.parametrize(
    ("damage", "kind", "rows"),
    first_quick(
        [
            ("data", "sha256", {"row-1"}),
            ("gone", "missing", {"row-0", "row-1"}),
            ("header", "undecodable", {"row-1"}),
            ("cut", "size", {"row-1"}),
        ],
        2,
    ),
)
def test_a_damaged_member_is_found_and_drawn_again(
    work: JobFolder, damage: str, kind: str, rows: set[str]
) -> None:
    run = render(work, *PACK)
    before, catalogued = recorded(run), rows_of(run).set_index("row_id")
    one = MediaPlace.of_row(catalogued.loc["row-1"])
    tar = run.root / one.file
    assert {*catalogued.index[catalogued.media_path.str.startswith(one.file)]} == {"row-0", "row-1"}
    data = bytearray(tar.read_bytes())
    if damage == "gone":
        tar.unlink()
    else:
        data[one.offset + 9 if damage == "data" else one.offset - 500] ^= 1
        tar.write_bytes(data[: one.offset + 20] if damage == "cut" else data)
    found = verify(work, run)
    assert found.code == 1
    assert {(f["kind"], f["row_id"]) for f in found.json["findings"] if f["row_id"]} == {
        (kind, row) for row in rows
    }
    mended = verify(work, run, "--repair")
    assert mended.json["voided"] == len(rows), mended.err
    assert work.here("resume", str(run.root)).code == 0
    assert recorded(run) == before
    last = verify(work, run)
    assert last.code == 0, last.out


def test_a_tar_that_no_row_names_any_more_is_an_orphan(work: JobFolder) -> None:
    run = render(work, *PACK)
    first = "media/00000-s1t0r0p0.tar"
    rows = rows_of(run)
    inside = [*rows.row_id[rows.media_path.str.startswith(first)]]
    assert inside == ["row-0", "row-1"]
    assert work.here("retry", str(run.root), "--rows", inside[0]).code == 0
    done = verify(work, run)
    assert (done.code, kinds(done)) == (0, ["orphan"])
    assert done.json["findings"][0]["path"].startswith(f"{first}{IN}{inside[0]}-")
    assert work.here("retry", str(run.root), "--rows", ",".join(inside[1:])).code == 0
    assert [f["path"] for f in verify(work, run).json["findings"]] == [first]
    verify(work, run, "--repair")
    assert not (run.root / first).exists() and (run.orphans / first).exists()
    assert kinds(verify(work, run)) == []


def test_a_full_disk_costs_a_try_and_no_member(
    work: JobFolder, fail_at: Callable[[str], None]
) -> None:
    direct = render(work)
    fail_at("tar.before_append:2:enospc,tar.after_append:4:enospc")
    run = render(work, *PACK)
    assert recorded(run) == recorded(direct)
    assert rows_of(run).tries.max() == 2
    assert {*members(run)} == {*rows_of(run).media_path}


def kill(work: JobFolder, run: RunPaths | None, point: str) -> RunPaths:
    """Begin the run, or go on with it, until the point kills the process."""
    verb = ["run", str(work.job), NULL, *SIZE, *PACK] if run is None else ["resume", str(run.root)]
    done = work.call(*verb, env={**AT_ONCE, "BATCHGEN_FAILPOINT": point})
    assert done.code == -signal.SIGKILL, done.err
    (folder,) = work.root.iterdir()
    return RunPaths(folder)


def test_a_torn_member_is_left_out_and_taken_away(work: JobFolder) -> None:
    run = kill(work, None, "tar.torn:3:kill")
    tar = run.media / "00000-s1t0r0p0.tar"
    torn = tar.read_bytes()
    assert work.here("resume", str(run.root)).code == 0
    assert tar.read_bytes() == torn
    done = verify(work, run)
    assert (done.code, kinds(done)) == (0, ["temporary"])
    verify(work, run, "--repair")
    assert kinds(verify(work, run)) == []
    aside = run.orphans / "media" / f"{tar.name}.tail"
    assert torn.endswith(aside.read_bytes()) and len(aside.read_bytes()) > 512
    assert {*members(run)} == {*rows_of(run).media_path}


@pytest.mark.slow
def test_kills_at_every_step_lose_nothing(work: JobFolder, tmp_path: Path) -> None:
    """One run, killed at each step in turn."""
    rows = [{**ROWS[0], "row_id": f"row-{i:02d}", "prompt": f"{i}", "seed": i} for i in range(24)]
    (tmp_path / "more").mkdir()
    work = make_job_folder(tmp_path / "more", rows)
    run: RunPaths | None = None
    for point in KILLS:
        run = kill(work, run, point)
    assert run is not None
    done = work.here("resume", str(run.root))
    assert done.code == 0, done.err
    found, catalogued = members_or_torn(run), rows_of(run)
    assert len(catalogued) == 24 and set(catalogued.status) == {"ok"}
    for row in catalogued.itertuples():
        assert hashlib.sha256(found[row.media_path]).hexdigest() == row.media_sha256
    checked = verify(work, run)
    assert checked.code == 0 and {*kinds(checked)} == {"orphan", "temporary"}
    there = recorded(run)
    verify(work, run, "--repair")
    assert recorded(run) == there == recorded(render(work, "tag=whole"))
    assert {*kinds(verify(work, run))} == {"orphan"}  # whole members beside others'


def members_or_torn(run: RunPaths) -> dict[str, bytes]:
    return {
        row["media_path"]: MediaPlace.of_row(row).read(run.root)
        for row in rows_of(run).to_dict("records")
    }


def test_folders_are_not_packed(work: JobFolder) -> None:
    done = work.run_here(NULL, "output.pack=tar", "output.format=frames")
    assert done.code == 2
    assert "output.pack: tar: takes one file of a row, and output.format=frames" in done.err
    wrong = work.run_here(NULL, "output.pack=zip")
    assert wrong.code == 2 and "output.pack: 'zip' is not 'tar' or null" in wrong.err


def test_a_run_goes_on_in_another_way(work: JobFolder) -> None:
    """Where media lie is in no row key."""
    run = kill(work, None, "tar.after_sync:2:kill")
    done = work.here("resume", str(run.root), "output.pack=null")
    assert done.code == 0, done.err
    rows = rows_of(run)
    assert 0 < rows.media_path.str.contains(IN).sum() < len(rows)
    assert recorded(run) == recorded(render(work, "tag=whole"))
