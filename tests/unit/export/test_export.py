"""Exports: what is written is read by the libraries that others use, and by nobody half."""

from __future__ import annotations

import gc
import hashlib
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from cli_calls import make_job_folder, rows_of
from moto.server import ThreadedMotoServer
from PIL import Image
from pyarrow import fs

from batchgen.cli.main import main
from batchgen.export import forms
from batchgen.export.place import Place
from batchgen.paths import RunPaths

NULL = ("model=null-engine", "row_defaults.num_steps=1", "row_defaults.num_frames=1")
DAY = date(2026, 1, 2)
PROMPTS = ['a fox, "red"', "雪\nsnow", "x=1; y", "plain", "five"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Five images, and a carried column."""
    rows = [{"row_id": f"row.{i}", "prompt": p, "shot": i} for i, p in enumerate(PROMPTS)]
    folder = make_job_folder(tmp_path_factory.mktemp("run"), rows)
    done = folder.run_here(*NULL, "carry_columns=[shot]")
    assert done.code == 0, done.err
    return done.run


def export(run: RunPaths, form: str, destination: Path | str, *options: str) -> int:
    return main(["export", str(run.root), "--to", form, str(destination), *options])


def one_a_part(run: RunPaths) -> str:
    return f"--part-mib={rows_of(run).media_bytes.min() / 2**20}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ---------------------------------------------------------------------------------------- readers
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_its_tars(run: RunPaths, tmp_path: Path) -> None:
    assert export(run, "webdataset", tmp_path / "out", one_a_part(run)) == 0
    tars = sorted(map(str, (tmp_path / "out").glob("part-*.tar")))
    assert len(tars) == len(PROMPTS)
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert [s["txt"] for s in samples] == PROMPTS
    assert [s["json"]["row_id"] for s in samples] == [f"row.{i}" for i in range(5)]
    assert [s["json"]["shot"] for s in samples] == list(range(5))
    for sample, digest in zip(samples, rows_of(run).frames_sha256, strict=True):
        assert hashlib.sha256(np.asarray(sample["png"]).tobytes()).hexdigest() == digest
    del samples
    gc.collect()  # its reader leaves files open


def test_datasets_loads_the_folder(run: RunPaths, tmp_path: Path) -> None:
    assert export(run, "imagefolder", tmp_path / "out", one_a_part(run)) == 0
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")
    assert sorted(loaded["prompt"]) == sorted(PROMPTS) and sorted(loaded["shot"]) == [*range(5)]
    digests = {hashlib.sha256(np.asarray(i).tobytes()).hexdigest() for i in loaded["image"]}
    assert digests == set(rows_of(run).frames_sha256)


def test_datasets_and_pandas_load_the_parquet(run: RunPaths, tmp_path: Path) -> None:
    assert export(run, "parquet-bytes", tmp_path / "out") == 0
    files = str(tmp_path / "out" / "*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train")
    images = loaded.cast_column("media", datasets.Image())["media"]
    frame = pd.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert list(frame.prompt) == PROMPTS and "host" not in frame
    for image, media, digest in zip(images, frame.media, rows_of(run).media_sha256, strict=True):
        assert hashlib.sha256(media["bytes"]).hexdigest() == digest
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(media["bytes"]))))


def test_videos_are_loaded_undecoded(tmp_path: Path) -> None:
    made = make_job_folder(tmp_path, 2).run_here(*NULL[:2], "row_defaults.num_frames=5")
    assert export(made.run, "imagefolder", tmp_path / "out") == 0
    loaded = datasets.load_dataset("videofolder", data_dir=str(tmp_path / "out"), split="train")
    videos = loaded.cast_column("video", datasets.Video(decode=False))["video"]
    digests = {hashlib.sha256(Path(v["path"]).read_bytes()).hexdigest() for v in videos}
    assert digests == set(rows_of(made.run).media_sha256)


# ------------------------------------------------------------------------------------- going on
def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.mark.parametrize("form", forms.names())
def test_an_interrupted_export_goes_on(form: str, run: RunPaths, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert export(run, form, whole, one_a_part(run)) == 0
    code = (
        "import os, sys\n"
        "from batchgen.export.place import Place\n"
        "real, seen = Place.put, []\n"
        "def put(self, source, name):\n"
        "    seen.append(name)\n"
        "    if 'part-00003' in name: os.kill(os.getpid(), 9)\n"
        "    return real(self, source, name)\n"
        "Place.put = put\n"
        "from batchgen.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["export", str(run.root), "--to", form, str(cut), one_a_part(run)]
    killed = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    before = listing(cut)
    assert export(run, form, cut, one_a_part(run)) == 0
    after = listing(cut)
    assert {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in listing(whole).items()
    }
    done = [name for name in before if any(f"part-0000{n}" in name for n in range(3))]
    assert done and all(after[name] == before[name] for name in done)


def test_what_was_changed_at_the_destination_is_written_again(
    run: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, "webdataset", tmp_path / "out", one_a_part(run)) == 0
    torn = tmp_path / "out" / "part-00002.tar"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-1])
    (tmp_path / "out" / "part-00004.tar").unlink()
    capsys.readouterr()
    assert export(run, "webdataset", tmp_path / "out", one_a_part(run)) == 0
    assert torn.read_bytes() == whole and "3 of them complete before" in capsys.readouterr().out


# --------------------------------------------------------------------------------- cut anew
def read_ids(form: str, folder: Path) -> list[str]:
    """Row ids that a reader of the whole folder finds."""
    if form == "webdataset":
        tars = sorted(map(str, folder.glob("*.tar")))
        found = [
            s["json"]["row_id"] for s in webdataset.WebDataset(tars, shardshuffle=False).decode()
        ]
        gc.collect()
        return found
    if form == "parquet-bytes":
        return [i for f in folder.glob("*.parquet") for i in pd.read_parquet(f).row_id]
    return list(datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")["row_id"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("form", forms.names())
def test_a_destination_cut_anew_holds_nothing_of_the_cut_before(
    form: str, run: RunPaths, tmp_path: Path
) -> None:
    """Larger parts than before, and what a killed export of smaller ones left without a record."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    assert export(run, form, out, one_a_part(run)) == 0
    (out / ".batchgen" / "part-00003.json").unlink()
    (out / ".batchgen" / "part-00002.json.tmp").write_text("{")
    (out / "README.md").write_text("mine")
    assert export(run, form, out) == 0 and export(run, form, fresh) == 0
    assert sorted(read_ids(form, out)) == [f"row.{i}" for i in range(5)]
    left = {name: data for name, (_, data) in listing(out).items()}
    assert left.pop("README.md") == b"mine"
    assert left == {name: data for name, (_, data) in listing(fresh).items()}
    assert [path.name for path in out.glob("part-*")] == [p.name for p in fresh.glob("part-*")]


def test_rows_that_are_no_more_are_no_more(run: RunPaths, tmp_path: Path) -> None:
    copy = RunPaths(tmp_path / run.root.name)
    shutil.copytree(run.root, copy.root)
    assert export(copy, "imagefolder", tmp_path / "out", one_a_part(run)) == 0
    before = listing(tmp_path / "out")
    (part,) = copy.catalog_rows.glob("*.parquet")
    table = pq.read_table(part)
    status = pa.array(["ok", "failed", "ok", "ok", "ok"], table.schema.field("status").type)
    at = table.schema.get_field_index("status")
    pq.write_table(table.set_column(at, table.schema.field("status"), status), part)
    assert export(copy, "imagefolder", tmp_path / "out", one_a_part(run)) == 0
    assert sorted(read_ids("imagefolder", tmp_path / "out")) == ["row.0", "row.2", "row.3", "row.4"]
    after = listing(tmp_path / "out")
    kept = [name for name in before if "part-00000" in name]
    assert kept and all(after[name] == before[name] for name in kept)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Ids and columns that readers give a meaning of their own, nulls in some parts alone."""
    ids = ["test-1", ".hidden", "__x", "dev.2"]
    rows = [
        {
            "row_id": row_id, "prompt": row_id, "media": "m", "source_file_name": "no.png",
            "file_name": "../x", "shot": i if i > 1 else None, "day": None if i else DAY,
            "blob": b"\xff" if i == 1 else None, "share": float("nan") if i == 2 else 0.5,
        }
        for i, row_id in enumerate(ids)
    ]  # fmt: skip
    folder = make_job_folder(tmp_path_factory.mktemp("odd"), rows)
    carried = "carry_columns=[media,source_file_name,file_name,shot,day,blob,share]"
    done = folder.run_here(*NULL, carried)
    assert done.code == 0, done.err
    return done.run


def test_every_part_has_the_types_of_the_catalog(odd: RunPaths, tmp_path: Path) -> None:
    assert export(odd, "parquet-bytes", tmp_path / "out", one_a_part(odd)) == 0
    schemas = [pq.read_schema(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert len(schemas) == 4 and all(schema == schemas[0] for schema in schemas)
    catalog = pq.read_schema(next(odd.catalog_rows.glob("*.parquet")))
    for name in ("shot", "day", "blob", "share", "tags", "prompt", "seed"):
        assert schemas[0].field(name).type == catalog.field(name).type
    frame = pd.read_parquet(tmp_path / "out")
    assert list(frame.media_of_row) == ["m"] * 4 and frame.shot.isna().sum() == 2


def test_ids_and_columns_mean_nothing_to_the_loader(odd: RunPaths, tmp_path: Path) -> None:
    assert export(odd, "imagefolder", tmp_path / "out", one_a_part(odd)) == 0
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"))
    assert list(loaded) == ["train"]
    rows = sorted(loaded["train"], key=lambda row: row["row_index"])
    assert [row["row_id"] for row in rows] == ["test-1", ".hidden", "__x", "dev.2"]
    assert [row["shot"] for row in rows] == [None, None, 2, 3]
    assert rows[0]["day"] == DAY and rows[1]["blob"] == b"\xff"
    assert {row["source_file_name_of_row"] for row in rows} == {"no.png"}
    assert {row["file_name_of_row"] for row in rows} == {"../x"}
    digests = [hashlib.sha256(np.asarray(row["image"]).tobytes()).hexdigest() for row in rows]
    assert digests == [row["frames_sha256"] for row in rows]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_carried_values_of_any_type_go_into_json(odd: RunPaths, tmp_path: Path) -> None:
    assert export(odd, "webdataset", tmp_path / "out") == 0
    (tar,) = map(str, (tmp_path / "out").glob("*.tar"))
    given = [s["json"] for s in webdataset.WebDataset([tar], shardshuffle=False).decode()]
    gc.collect()
    assert (given[0]["day"], given[1]["blob"], given[2]["share"]) == ("2026-01-02", "/w==", None)
    assert "shot" not in given[0] and given[3]["shot"] == 3


# -------------------------------------------------------------------------------------- refusals
def test_places_of_others_are_left_alone(
    run: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    assert export(run, "webdataset", full) == 2
    assert "is not empty: it holds mine.txt" in capsys.readouterr().err
    assert export(run, "webdataset", tmp_path / "out") == 0
    assert export(run, "imagefolder", tmp_path / "out") == 2
    assert "as webdataset; export run" in capsys.readouterr().err
    assert [path.name for path in full.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("form", "destination", "words"),
    [
        ("webdatset", "out", "did you mean 'webdataset'"),
        ("webdataset", "nothing://x/y", "DST 'nothing://x/y' cannot be opened"),
        ("webdataset", "/proc/no/where", "/proc/no/where"),
    ],
)
def test_typing_errors_are_named(
    form: str, destination: str, words: str, run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, form, destination) != 0
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_a_damaged_file_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_job_folder(tmp_path, 2).run_here(*NULL)
    victim = made.run.root / rows_of(made.run).media_path[1]
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert export(made.run, "webdataset", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "row 'row-001'" in said and "is not the file that was published" in said
    assert not list((tmp_path / "out").glob("part*"))


# -------------------------------------------------------------------------------------------- S3
@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine, as a URI to which a key is added."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    fs.S3FileSystem(
        endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True
    ).create_dir("films")
    yield f"s3://films/KEY?{options}"
    server.stop()


def test_an_object_store_gets_the_same_files(run: RunPaths, tmp_path: Path, bucket: str) -> None:
    uri = bucket.replace("KEY", "a/b")
    assert export(run, "webdataset", uri, one_a_part(run)) == 0
    assert export(run, "webdataset", tmp_path / "out", one_a_part(run)) == 0
    place = Place.open(uri)
    filesystem, root = fs.FileSystem.from_uri(uri)
    for name, (_, data) in listing(tmp_path / "out").items():
        with filesystem.open_input_stream(f"{root}/{name}") as stream:
            assert stream.read() == data, name
    record = place.get_json(".batchgen/part-00001.json")
    assert (
        record["files"][0]["sha256"]
        == hashlib.sha256((tmp_path / "out" / "part-00001.tar").read_bytes()).hexdigest()
    )
