"""Images of rows: what passes, what it becomes, and what is refused by row and file."""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaged_jobs import job_of
from PIL import Image

from batchgen.errors import ConfigError, ManifestError, RunStateError
from batchgen.paths import RunPaths
from batchgen.pictures import MAX_PIXELS, NoPicture, decode, read_bytes, stored
from batchgen.planning.manifests import images
from batchgen.planning.manifests.building.build import build_manifest
from batchgen.planning.manifests.check import check_manifest
from batchgen.planning.plan import make_plan, read_requests

MODEL = "model=wan2.2-i2v-a14b"


def coded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    bands = len(mode)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(values[..., 0] if bands == 1 else values, mode)


PLAIN = noise()


def planned(folder: Path, columns: dict[str, Any], *overrides: str, model: str = MODEL) -> Any:
    """The requests of a manifest, planned into a run that keeps its images."""
    table = pa.table({"prompt": [f"p{i}" for i in range(len(next(iter(columns.values()))))]})
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else [values])
    pq.write_table(table, folder / "rows.parquet")
    job = replace(job_of(model, *overrides), manifest=str(folder / "rows.parquet"))
    run = RunPaths(folder / "run")
    run.root.mkdir(exist_ok=True)
    return read_requests(make_plan(job, run.plan, keep=run).path)


def test_paths_bytes_and_structs_of_one_content_are_one_image(tmp_path: Path) -> None:
    data = coded(PLAIN)
    (tmp_path / "a.png").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    whole = str(tmp_path / "a.png")
    structs = [{"bytes": data, "path": "gone.png"}, {"bytes": None, "path": "a.png"}]
    for given in (["a.png", whole], pa.array([data, data]), pa.array(structs)):
        rows = planned(tmp_path, {"image": given})
        assert [row.image for row in rows] == [digest] * 2
        assert rows[0].row_key != rows[1].row_key  # their prompts
    run = RunPaths(tmp_path / "run")
    assert [f.name for f in run.inputs.rglob("*") if f.is_file()] == [digest]
    assert np.array_equal(stored(run.input(digest), digest), PLAIN)
    run.input(digest).write_bytes(coded(noise("L")))
    with pytest.raises(RunStateError, match="is damaged: its sha256 is"):
        stored(run.input(digest), digest)
    run.input(digest).unlink()
    with pytest.raises(RunStateError, match="there is no such file"):
        stored(run.input(digest), digest)


def test_a_run_planned_anew_reads_no_image_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its file is another, or the run has lost it; nor does another plan."""
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(coded(noise(size=(6 + number, 4))))
    read: list[str] = []
    monkeypatch.setattr(
        images, "read_bytes", lambda path: (read.append(path.name), read_bytes(path))[1]
    )

    def again() -> list[str]:
        read.clear()
        rows = planned(tmp_path, {"image": [file.name for file in files]})
        assert [row.image for row in rows] == [
            hashlib.sha256(file.read_bytes()).hexdigest() for file in files
        ]
        return sorted(read)

    assert again() == ["0.png", "1.png", "2.png"]
    assert again() == []
    files[1].write_bytes(coded(noise(size=(7, 5))))
    assert again() == ["1.png"]
    run = RunPaths(tmp_path / "run")
    run.input(hashlib.sha256(files[2].read_bytes()).hexdigest()).unlink()
    assert again() == ["2.png"]
    files[0].write_bytes(b"no picture")
    with pytest.raises(ManifestError, match=r"0\.png"):
        again()


def test_the_image_is_in_the_key_and_a_row_without_one_takes_the_job_s(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(coded(noise(size=(6 + number, 4))))
    rows = planned(
        tmp_path,
        {"image": ["0.png", None, "0.png"], "seed": [1, 1, 1], "last_image": [None, None, "1.png"]},
        "row_defaults.image=1.png",
    )
    assert rows[0].image != rows[1].image == rows[2].last_image
    assert len({row.row_key for row in rows}) == 3
    plain = planned(tmp_path, {"seed": [1]}, model="model=wan2.2-ti2v-5b")
    assert plain[0].images == ()


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return coded(image, "PNG", exif=exif)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (turned(PLAIN), np.rot90(np.asarray(PLAIN), -1)),
        (coded(noise("RGBA")), np.asarray(noise("RGBA"))[..., :3]),
        (coded(noise("CMYK"), "TIFF"), np.asarray(noise("CMYK").convert("RGB"))),
        (coded(noise("L")), np.repeat(np.asarray(noise("L"))[..., None], 3, 2)),
        (coded(noise("L").convert("1")), np.asarray(noise("L").convert("1").convert("RGB"))),
        (coded(PLAIN.convert("P"), "GIF"), np.asarray(PLAIN.convert("P").convert("RGB"))),
    ],
    ids=["turned", "alpha", "cmyk", "grey", "black and white", "palette"],
)
def test_images_become_rgb_as_load_image_makes_them(data: bytes, pixels: np.ndarray) -> None:
    """Its two lines: `ImageOps.exif_transpose`, then `convert("RGB")`."""
    assert np.array_equal(np.asarray(decode(data)), pixels)


def bomb() -> bytes:
    """A header of many pixels, and none behind it."""
    data = bytearray(coded(PLAIN))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


ANIMATED = coded(PLAIN, "GIF", save_all=True, append_images=[noise(size=(6, 4)).rotate(180)])
REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"a fox", "is no image; legal: PNG"),
    "cut": (coded(noise(size=(64, 64)))[:-300], "is cut off or damaged"),
    "animated": (ANIMATED, "has 2 frames"),
    "deep": (coded(Image.fromarray(np.zeros((4, 4), np.uint16))), "samples of mode I;16"),
    "huge": (bomb(), f"has more than {MAX_PIXELS} pixels"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_to_draw_from_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(NoPicture, match=reason):
        decode(data)


def test_every_row_with_an_illegal_image_is_listed(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(coded(PLAIN))
    (tmp_path / "cut.png").write_bytes(REFUSED["cut"][0])
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    names = ["good.png", "gone.png", "cut.png", "folder", "https://x.org/a.png", None, "loop.png"]
    with pytest.raises(ManifestError) as caught:
        planned(tmp_path, {"image": names})
    said = str(caught.value)
    assert "6 illegal values" in said
    assert f"row 1, image = 'gone.png': {tmp_path / 'gone.png'} there is no such file" in said
    assert f"row 2, image = 'cut.png': {tmp_path / 'cut.png'} is cut off or damaged" in said
    assert "row 3, image = 'folder'" in said and "is not a regular file" in said
    assert "row 4" in said and "images are not fetched" in said
    assert "row 5, image = null: the model draws from it" in said
    assert "row 6, image = 'loop.png'" in said and "symbolic links" in said
    assert not (tmp_path / "run" / "plan.parquet").exists()
    report = check_manifest(tmp_path / "rows.parquet")  # without a job nobody needs one
    assert report.problems.count == 5


def test_rules_of_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(coded(PLAIN))
    with pytest.raises(ManifestError, match=r"row 0, image = '<1 bytes>': is not served"):
        planned(tmp_path, {"image": pa.array([b"x"])}, model="model=wan2.1-t2v-14b")
    with pytest.raises(ConfigError, match=r"row_defaults.image: a.png is not served"):
        planned(tmp_path, {"seed": [1]}, "row_defaults.image=a.png", model="model=tiny-wan")
    with pytest.raises(ConfigError, match=r"row_defaults.image: .*b.png there is no such file"):
        planned(tmp_path, {"seed": [1]}, "row_defaults.image=b.png")
    with pytest.raises(ManifestError, match=r"last_image = .*: is not served"):
        planned(
            tmp_path,
            {"image": ["a.png"], "last_image": ["a.png"]},
            model="model=wan2.1-i2v-14b-480p",
        )
    with pytest.raises(ManifestError, match="row 0, last_image = null: the model draws from it"):
        planned(tmp_path, {"image": ["a.png"]}, model="model=wan2.1-flf2v-14b-720p")
    with pytest.raises(ManifestError, match="needs a row of more than one frame"):
        given = {"image": ["a.png"], "last_image": ["a.png"], "num_frames": [1]}
        planned(tmp_path, given)
    with pytest.raises(ManifestError, match="'image' has type int64; legal: strings"):
        planned(tmp_path, {"image": [1]})


def test_a_folder_of_images_and_captions_is_a_source(tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "made" / "rows.parquet"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "more/b c.jpg"):
        PLAIN.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"\ufeff {name}\n", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"")
    build_manifest(folder, out, seeds=2)
    rows = pq.read_table(out).to_pylist()
    assert [row["row_id"] for row in rows] == [
        *("a-seed0", "a-seed1", "more-b-c-seed0", "more-b-c-seed1")
    ]
    assert [row["prompt"] for row in rows[1:3]] == ["a.png", "more/b c.jpg"]
    assert [row["image"] for row in rows[1:3]] == [
        *("../pictures/a.png", "../pictures/more/b c.jpg")
    ]
    assert check_manifest(out).problems.count == 0
    (folder / "a.jpg").write_bytes((folder / "more" / "b c.jpg").read_bytes())
    (folder / "more" / "b c.txt").rename(folder / "lone.txt")
    with pytest.raises(ManifestError) as caught:
        build_manifest(folder, tmp_path / "other.parquet")
    assert str(caught.value).splitlines() == [
        f"{folder}: 3 files without a pair",
        f"  {folder / 'a.png'}: has the caption of a.jpg",
        f"  {folder / 'lone.txt'}: a caption without an image",
        f"  {folder / 'more' / 'b c.jpg'}: an image without its caption b c.txt",
    ]
    (folder / "empty").mkdir()
    for stray in ("a.jpg", "lone.txt", "more/b c.jpg"):
        (folder / stray).unlink()
    (folder / "a.txt").write_text(" \n")
    with pytest.raises(ManifestError, match=r"a\.png, prompt = '': a prompt needs more than"):
        build_manifest(folder, tmp_path / "other.parquet")
    assert not (tmp_path / "other.parquet").exists()
