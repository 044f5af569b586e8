"""Folders of images with metadata: the rows are those that `datasets` loads from them."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchgen.errors import ManifestError
from batchgen.planning.manifests.building.build import build_manifest
from batchgen.planning.manifests.check import check_manifest

Rows = Sequence[dict[str, Any]]
ROWS: Rows = [
    {"file_name": "0001.png", "text": 'a "red" fox, 雪', "seed": 2**62, "shot": 1},
    {"file_name": "more/0002.jpg", "text": "two\nlines", "seed": None, "shot": 2},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, rows: Rows, kind: str) -> None:
    """As the documentation of datasets shows it: the images, and a metadata file beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(str(path)) + number).integers(
            0, 256, (8, 8, 3), np.uint8
        )
        Image.fromarray(pixels).save(path)
    frame = pd.DataFrame(rows).convert_dtypes()
    if kind == "csv":
        frame.to_csv(folder / "metadata.csv", index=False)
    elif kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        frame.to_parquet(folder / "metadata.parquet", index=False)


def built(folder: Path, out: Path) -> list[dict[str, Any]]:
    build_manifest(folder, out)
    assert check_manifest(out).problems.count == 0
    found: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return found


def compared(row: dict[str, Any], image: Image.Image, split: str) -> tuple[Any, ...]:
    return split, row["text"], row["shot"], row.get("seed"), np.asarray(image).tobytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "splits", [(), ("train", "test"), pytest.param(("my-train.1", "val"), marks=pytest.mark.slow)]
)
def test_rows_are_those_that_datasets_loads(
    kind: str, splits: Sequence[str], tmp_path: Path
) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "made" / "rows.parquet"
    for split in splits or ("",):
        rows = [{**row, "text": row["text"] + split} for row in ROWS]
        write(folder / split, rows, kind)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder))
    gc.collect()  # what the library left open is closed here, not in another test
    wanted = [compared(row, row["image"], s) for s, rows in loaded.items() for row in rows]
    made = []
    for row in built(folder, out):
        with Image.open(out.parent / row["image"]) as image:
            given = {**row, "text": row["prompt"]}
            made.append(compared(given, image.convert("RGB"), row.get("split", "train")))
    assert sorted(made, key=repr) == sorted(wanted, key=repr)
    assert len(made) == 2 * max(1, len(splits))


def test_ids_are_paths_and_columns_of_a_request_are_taken(tmp_path: Path) -> None:
    rows = [
        {
            "file_name": "a/1.png",
            "last_image_file_name": "a/2.png",
            "prompt": "x",
            "text": "y",
            "num_frames": 5,
        },
        {"file_name": "a/2.png", "last_image_file_name": None, "prompt": "z", "text": "y"},
    ]
    write(tmp_path / "in", rows, "jsonl")
    (tmp_path / "in" / "a" / "unnamed.png").write_bytes(b"")
    made = built(tmp_path / "in", tmp_path / "out.parquet")
    assert [(row["row_id"], row["prompt"], row["image"], row["last_image"]) for row in made] == [
        ("a-1", "x", "in/a/1.png", "in/a/2.png"),
        ("a-2", "z", "in/a/2.png", None),
    ]
    assert [row["text"] for row in made] == ["y", "y"]
    write(tmp_path / "twice", [ROWS[0], {**ROWS[0], "text": "again"}], "csv")
    made = built(tmp_path / "twice", tmp_path / "two.parquet")
    assert "row_id" not in made[0] and made[0]["image"] == made[1]["image"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"file_name": "a.png", "title": "x"}], "prompt"),
        ([{"file_name": "a.png", "text": "x", "image": "b"}], "file_name and image are both the"),
        ([{"file_name": "a.png", "text": "x", "width": -1}], "metadata.jsonl, line 1, width = -1"),
        ([{"file_name": "a.png", "text": ""}], "metadata.jsonl, line 1, prompt = ''"),
    ],
)
def test_rows_are_refused_by_file_and_line(rows: Rows, words: str, tmp_path: Path) -> None:
    write(tmp_path / "in", rows, "jsonl")
    with pytest.raises(ManifestError) as refused:
        build_manifest(tmp_path / "in", tmp_path / "out.parquet")
    assert words in str(refused.value) and str(tmp_path / "in") in str(refused.value)


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/passwd", "file:///etc/passwd", "none.png", None, 7]
)
def test_paths_lead_to_files_of_the_folder(name: object, tmp_path: Path) -> None:
    write(tmp_path / "in", [{"file_name": "a.png", "text": "x"}], "jsonl")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = json.dumps({"file_name": name, "text": "x"})
    (tmp_path / "in" / "metadata.jsonl").write_text(line)
    with pytest.raises(ManifestError) as refused:
        build_manifest(tmp_path / "in", tmp_path / "out.parquet")
    assert str(name if name is not None else "null") in str(refused.value) or name == 7
    assert "file_name" in str(refused.value) or "image" in str(refused.value)
    assert not (tmp_path / "out.parquet").exists()


def test_folders_that_datasets_reads_in_part_or_twice_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "train", ROWS, "csv")
    write(folder / "extra", ROWS, "csv")
    with pytest.raises(ManifestError, match=r"extra/metadata.csv: .* in none of them"):
        build_manifest(folder, tmp_path / "out.parquet")
    (folder / "extra").rename(folder / "train" / "test-1")
    with pytest.raises(ManifestError, match="in those of train and test"):
        build_manifest(folder, tmp_path / "out.parquet")
    (folder / "train" / "test-1" / "metadata.csv").rename(folder / "train" / "metadata.jsonl")
    with pytest.raises(ManifestError, match=r"several kinds \(.csv, .jsonl\)"):
        build_manifest(folder, tmp_path / "out.parquet")
    (folder / "train" / "metadata.jsonl").unlink()
    (folder / "train" / "metadata.csv").write_text("text\nx\n")
    with pytest.raises(ManifestError, match="no column 'file_name'; it has text"):
        build_manifest(folder, tmp_path / "out.parquet")
