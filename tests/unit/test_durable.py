"""Files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.durable import open_atomic


@pytest.mark.parametrize("error", [KeyError("row"), OSError(28, "No space left on device")])
def test_a_file_that_fails_half_way_leaves_the_old_one_alone(
    tmp_path: Path, error: Exception
) -> None:
    path = tmp_path / "shards.parquet"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as raised, open_atomic(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(path)
