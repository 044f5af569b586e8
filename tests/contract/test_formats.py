"""Every media format keeps the same promises; the test finds them by looking into the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from batchgen.config.build import hint_of
from batchgen.durable import digest_file
from batchgen.errors import ConfigError
from batchgen.media import ffmpeg, formats
from batchgen.planning.manifests.defaults import SINGLE_FRAME_FORMATS

EXACT = {"png", "frames", "npy", "latents"}  # whatever the quality
STILL = {*SINGLE_FRAME_FORMATS}
ALL = formats.names()


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """A smooth moving gradient, kind to lossy codecs; two neighbouring frames are equal."""
    y, x = np.mgrid[:height, :width]
    made = [np.stack([x * 2 + t * 6, y * 2, x + y], -1) % 256 for t in range(frames)]
    if frames > 3:
        made[2] = made[1]
    return np.stack(made).astype(np.uint8)


def shapes(name: str) -> list[tuple[int, int, int]]:
    stills = [(1, 48, 64), (1, 33, 47)]
    return stills if name in STILL else [*stills, (9, 48, 64), (5, 33, 47)]


@pytest.mark.parametrize(("name", "shape"), [(n, s) for n in ALL for s in shapes(n)])
def test_frames_come_back_in_number_size_and_colour(
    name: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    """Odd sizes are kept; lossless formats give the same pixels, the others near ones."""
    module = formats.get(name)
    frames = clip(*shape)
    path = tmp_path / f"a{module.EXTENSION}"
    module.write(frames, path, fps=16, quality=8)
    back = module.read(path)
    assert back.dtype == np.uint8
    assert back.shape == frames.shape
    difference = np.abs(back.astype(int) - frames)
    assert difference.max() == 0 if name in EXACT else difference.mean() < 12


@pytest.mark.parametrize("name", ALL)
def test_equal_frames_give_equal_bytes(name: str, tmp_path: Path) -> None:
    module = formats.get(name)
    frames = clip(*shapes(name)[-2])
    digests = set()
    for folder in ("one", "two"):
        path = tmp_path / folder / f"a{module.EXTENSION}"
        path.parent.mkdir()
        module.write(frames, path, fps=16, quality=8)
        digests.add(digest_file(path)[0])
    assert len(digests) == 1


@pytest.mark.parametrize("name", ALL)
def test_frame_rates_may_be_fractions_and_whole_ones_give_the_bytes_of_integers(
    name: str, tmp_path: Path
) -> None:
    module = formats.get(name)
    frames = clip(*shapes(name)[-2])
    digests = {}
    for number, fps in enumerate((24, 24.0, 23.976)):
        path = tmp_path / str(number) / f"a{module.EXTENSION}"
        path.parent.mkdir()
        module.write(frames, path, fps=fps, quality=8)
        assert module.read(path).shape == frames.shape
        digests[number] = digest_file(path)[0]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("fps", "wanted"),
    [
        (24, "24"),
        (8.0, "8"),
        (23.976, "24000/1001"),
        (23.98, "24000/1001"),
        (24 / 1.001, "24000/1001"),
        (29.97, "30000/1001"),
        (59.94, "60000/1001"),
        (12.5, "25/2"),
        (23.9, "239/10"),
    ],
)
def test_a_frame_rate_becomes_the_fraction_that_is_meant(fps: float, wanted: str) -> None:
    assert ffmpeg.rate(fps) == wanted


def test_the_fraction_stands_in_the_mp4(tmp_path: Path) -> None:
    """Ticks a second in its media header, ticks of a frame in its table of times."""
    path = tmp_path / "a.mp4"
    formats.get("mp4").write(clip(3, 16, 16), path, fps=23.976, quality=8)
    data = path.read_bytes()
    header, times = data.index(b"mdhd"), data.index(b"stts")
    assert int.from_bytes(data[header + 16 : header + 20]) == 24000
    assert int.from_bytes(data[times + 16 : times + 20]) == 1001


@pytest.mark.parametrize("name", sorted(set(ALL) - {"frames"}))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.97, 0.999])
def test_a_torn_file_is_refused(name: str, share: float, tmp_path: Path) -> None:
    """Zero length too."""
    module = formats.get(name)
    path = tmp_path / f"a{module.EXTENSION}"
    module.write(clip(*shapes(name)[-2]), path, fps=16, quality=8)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises((OSError, ValueError)):
        module.read(path)


@pytest.mark.parametrize("spoil", ["missing", "torn", "foreign", "empty"])
def test_a_spoiled_folder_of_frames_is_refused(spoil: str, tmp_path: Path) -> None:
    module = formats.get("frames")
    path = tmp_path / "a.frames"
    module.write(clip(4, 16, 16), path, fps=16, quality=8)
    if spoil == "missing":
        (path / "00001.png").unlink()
    elif spoil == "torn":
        (path / "00003.png").write_bytes(b"")
    elif spoil == "foreign":
        (path / "notes.txt").write_text("hello")
    else:
        for file in path.iterdir():
            file.unlink()
    with pytest.raises((OSError, ValueError)):
        module.read(path)


@pytest.mark.parametrize("name", sorted(set(ALL) - EXACT - {"gif"}))
def test_quality_buys_fidelity(name: str, tmp_path: Path) -> None:
    """Quality 10 is nearer to the frames than quality 0, and larger."""
    module = formats.get(name)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    errors, sizes = [], []
    for quality in (0, 10):
        path = tmp_path / f"{quality}{module.EXTENSION}"
        module.write(frames, path, fps=16, quality=quality)
        errors.append(np.abs(module.read(path).astype(int) - frames).mean())
        sizes.append(path.stat().st_size)
    assert errors[1] < errors[0]
    assert sizes[1] > sizes[0]


@pytest.mark.parametrize("name", sorted(STILL))
def test_a_still_format_refuses_a_clip(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds one frame, not 2"):
        formats.get(name).write(clip(2, 16, 16), tmp_path / "a", fps=16, quality=8)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    """A .npy file can hold a pickle, which would run code when it is read."""
    path = tmp_path / "a.npy"
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        formats.get("npy").read(path)


def test_an_unknown_format_names_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"'jpg' is not one of frames, gif, jpeg.*'jpeg'"):
        formats.get("jpg")


def test_the_folder_says_what_is_legal() -> None:
    assert Literal[("auto", *ALL)] == hint_of("output.format")  # type: ignore[valid-type]


def test_extensions_are_unique() -> None:
    extensions = [formats.get(name).EXTENSION for name in ALL]
    assert len(set(extensions)) == len(ALL)
    assert [formats.by_extension(e) for e in extensions] == [formats.get(n) for n in ALL]
