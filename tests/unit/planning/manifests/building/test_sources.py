"""What people bring to `manifest build`: read as they mean it, or refused with line, column and
value; and what is written passes `manifest check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.errors import ManifestError
from batchgen.planning.manifests.building.build import build_manifest
from batchgen.planning.manifests.check import check_manifest

Build = Callable[..., dict[str, list[object]]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds from a source of the given content; its columns, after they passed the check."""

    def make(name: str, content: str | bytes, **options: object) -> dict[str, list[object]]:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(raw)
        out = tmp_path / "out.parquet"
        out.unlink(missing_ok=True)
        build_manifest(tmp_path / name, out, **options)  # type: ignore[arg-type]
        assert check_manifest(out).problems.count == 0
        columns: dict[str, list[object]] = pq.read_table(out).to_pydict()
        return columns

    return make


@pytest.fixture
def refused(build: Build, tmp_path: Path) -> Callable[..., str]:
    """The message with which a source is refused; checks that nothing was written."""

    def make(name: str, content: str | bytes, **options: object) -> str:
        with pytest.raises(ManifestError) as caught:
            build(name, content, **options)
        assert {path.name for path in tmp_path.iterdir()} == {name}
        (tmp_path / name).unlink()
        return str(caught.value)

    return make


# ------------------------------------------------------------------------------------------ tables
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "prompt,seed\na; b,1\n"),
        ("semicolons.csv", "prompt;seed\na; b;1\n".replace("a; b", '"a; b"')),
        ("tabs.csv", "prompt\tseed\na; b\t1\n"),
        ("tabs.tsv", "seed\tprompt\n1\ta; b\n"),
        ("bars.csv", "prompt|seed\na; b|1\n"),
        ("excel.csv", 'sep=;\r\nprompt;seed\r\n"a; b";1\r\n'),
        ("quoted.csv", '"sep=\t"\nprompt\tseed\na; b\t1\n'),
        ("marked.csv", '\ufeff"prompt";"seed"\n"a; b";"1"\n\n'),
        ("BIG.CSV", "prompt,seed\na; b,1.0\n"),
        ("whole.csv", "prompt,seed\na; b, 1 \n"),
    ],
)
def test_tables_are_read_whatever_divides_their_cells(
    build: Build, name: str, content: str
) -> None:
    assert build(name, content) == {"prompt": ["a; b"], "seed": [1]} or build(name, content) == {
        "seed": [1],
        "prompt": ["a; b"],
    }


def test_other_columns_get_the_type_of_all_their_cells(build: Build) -> None:
    content = (
        "prompt,shot,take,mark,done,long,mixed\n"
        "a,007,1,0.5,true,12345678901234567890,1\n"
        "b,012,2,2,False,,x\n"
    )
    assert build("t.csv", content) == {
        "prompt": ["a", "b"],
        "shot": ["007", "012"],
        "take": [1, 2],
        "mark": [0.5, 2.0],
        "done": [True, False],
        "long": ["12345678901234567890", None],
        "mixed": ["1", "x"],
    }


def test_ids_and_tags_stay_text(build: Build) -> None:
    columns = build("t.csv", "prompt,row_id,tags\na,007,1.0\n")
    assert columns == {"prompt": ["a"], "row_id": ["007"], "tags": ["1.0"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Prompt,seed\na,1\n", "line 1: column 'Prompt' is written 'prompt'"),
        ("Prompt;Seed\na;1\n", "line 1: column 'Prompt' is written 'prompt'"),
        ("prompt, seed\na,1\n", "line 1: column ' seed' is written 'seed'"),
        ("prompt,Guidance Scale\na,1\n", "'Guidance Scale' is written 'guidance_scale'"),
        ("prompt,seed,seed\na,1,2\n", "column 'seed' appears more than once: as number 2, 3"),
        ("prompt,,seed\na,1,2\n", "line 1: column 2 has no name"),
        ("text,seed\na,1\n", "no column 'prompt'; columns: text, seed"),
        ("prompt,seed\na,1.5\n", "line 2, seed = '1.5': legal: an integer"),
        ("prompt,seed\na,nan\n", "line 2, seed = 'nan': legal: an integer"),
        ("prompt,seed\na,1_000\n", "line 2, seed = '1_000': legal: an integer"),
        ("prompt,seed\na,99999999999999999999\n", "legal: an integer of 64 bits"),
        ("prompt,guidance_scale\na,NaN\n", "line 2, guidance_scale = 'NaN': legal: a number"),
        ("prompt,guidance_scale\na,inf\n", "line 2, guidance_scale = 'inf': legal: a number"),
        ("prompt;guidance_scale\na;4,5\n", "'4,5': legal: a number with a decimal point"),
        ("prompt,num_steps\na,0\n", "line 2, num_steps = 0: legal: >= 1"),
        ('prompt,seed\n"two\nlines",1\n\nb,x\n', "line 5, seed = 'x': legal"),
        ('sep=;\nprompt;seed\n"two\nlines";1\nb;x\n', "line 5, seed = 'x': legal"),
        ("prompt,seed\n,1\n", "line 2, prompt = null: a prompt is required"),
        ("prompt\na red fox, running\n", "line 2: expected 1 columns (prompt), got 2; a cell"),
        ('prompt,seed\na,1\n"b,2\nc,3\n', "line 3: not CSV: unexpected end of data; a quote"),
        ("prompt,row_id\na,x\nb,y\nc,x\n", "line 4, row_id = 'x': line 2 has it already"),
        ("prompt,row_id\na,a b\n", "line 2, row_id = 'a b': legal: 1 to 128"),
        ("prompt,last_image\na,\n", None),
        ("prompt,lora\na,x\n", "x: there is no such file"),
    ],
)
def test_a_table_that_would_be_no_manifest_is_refused(
    build: Build, refused: Callable[..., str], content: str, message: str | None
) -> None:
    if message is None:  # what a model serves is judged with a job, as in `manifest check`
        build("t.csv", content)
    else:
        assert message in refused("t.csv", content)


def test_all_illegal_cells_are_listed(refused: Callable[..., str]) -> None:
    rows = "".join(f"p{i},{i if i % 10 else 'x'}\n" for i in range(300))
    message = refused("t.csv", f"prompt,seed\n{rows}")
    assert "30 illegal values (the first 20 are shown)" in message
    assert "line 2, seed = 'x'" in message and "line 12, seed = 'x'" in message


def test_a_sweep_is_checked_as_rows_are(refused: Callable[..., str]) -> None:
    table = "prompt,row_id\na,x\nb,y\n"
    message = refused("t.csv", table, sweeps={"num_steps": "0,4"})
    assert "2 illegal values" in message
    assert "line 2, num_steps = 0" in message and "line 3, num_steps = 0" in message
    message = refused("t.csv", table, sweeps={"num_steps": "4,4"})
    assert "line 2, row_id = 'x-num_steps4': line 2 has it already" in message
    assert "are not numbers" in refused("t.csv", table, sweeps={"guidance_scale": "nan"})


# -------------------------------------------------------------------------------------- JSON lines
def test_json_lines_name_line_column_and_value_twenty_thousand_lines_deep(
    refused: Callable[..., str],
) -> None:
    lines = [{"prompt": "x" * 200, "seed": i if i != 19000 else "oops"} for i in range(20_000)]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    message = refused("big.jsonl", content)
    assert "line 19001, seed = 'oops': legal: an integer" in message


def test_json_lines_may_begin_with_a_mark_and_whole_floats_are_integers(build: Build) -> None:
    content = '\ufeff{"prompt": "a", "seed": 1.0, "fps": 23.976}\r\n\n{"prompt": "b", "mine": null}'
    assert build("t.jsonl", content) == {
        "prompt": ["a", "b"],
        "seed": [1, None],
        "fps": [23.976, None],
        "mine": [None, None],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"},\n{"prompt": "b"},\n', "line 1: a comma after the object"),
        ('[{"prompt": "a"},\n{"prompt": "b"}]\n', "line 1: a JSON array"),
        ('{"prompt": "a"}{"prompt": "b"}\n', "line 1: a second object at character 16"),
        (
            '{\n"prompt": "a"\n}\n',
            "line 1: an object over several lines; JSON lines have one object a line: jq",
        ),
        ('{"prompt": "\\ud800"}\n', "line 1, prompt = '\\ud800': is not text: it holds one half"),
        ('{"prompt": "a"}\n"b"\n', "line 2: 'b' is not an object"),
        ('{"prompt": "a"}\n{"prompt": "b\n', "line 2: not JSON: unterminated string"),
        ('{"prompt": "a", "seed": 1, "seed": 2}\n', "line 1: column 'seed' appears more than once"),
        ('{"Prompt": "a"}\n', "line 1: column 'Prompt' is written 'prompt'"),
        ('{"prompt": "a", "seed": 1.5}\n', "line 1, seed = 1.5: legal: an integer"),
        ('{"prompt": "a", "seed": true}\n', "line 1, seed = True: legal: an integer"),
        ('{"prompt": "a", "seed": 18446744073709551616}\n', "legal: an integer of 64 bits"),
        ('{"prompt": "a", "guidance_scale": NaN}\n', "legal: a number that is finite"),
        ('{"prompt": "a", "row_id": 7}\n', "line 1, row_id = 7: legal: text in quotes"),
        ('{"prompt": ["a"]}\n', "line 1, prompt = ['a']: legal: text"),
        ('{"prompt": "a", "m": 1}\n{"prompt": "b", "m": "x"}\n', "line 2, m = 'x': is text, but"),
        ('{"prompt": "a"}\n{"prompt": "\\ud800"}\n', "line 2, prompt = "),
        ('{"prompt": "a", "m": [1]}\n{"prompt": "b", "m": ["x"]}\n', "line 2, m = "),
        ('{"prompt": "a"}\n{}\n', "line 2, prompt = null: a prompt is required"),
        ("[" * 100_000, "line 1: a JSON array"),
        ('{"a":' * 100_000, "line 1: nested too deeply"),
    ],
)
def test_json_that_is_no_manifest_is_refused(
    refused: Callable[..., str], content: str, message: str
) -> None:
    assert message in refused("t.jsonl", content)


# --------------------------------------------------------------------------------------- encodings
def test_a_stray_zero_byte_is_not_called_utf16(refused: Callable[..., str]) -> None:
    assert "line 1, prompt = 'a\\x00b': holds a NUL" in refused("t.txt", "a\0b\nc\n")


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", "line 3: byte 0xfc is not UTF-8; in Windows-1252 (Latin-1) it reads "),
        ("utf-16", "line 1: is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
        ("utf-16-le", "line 1: is UTF-16LE, not UTF-8"),
        ("utf-16-be", "line 1: is UTF-16BE, not UTF-8"),
        ("utf-32", "line 1: is UTF-32, not UTF-8"),
    ],
)
def test_other_encodings_are_named_with_the_line(
    refused: Callable[..., str], name: str, encoding: str, message: str
) -> None:
    content = {
        "t.txt": "a\nb\nsüß\n",
        "t.csv": "prompt\nb\nsüß\n",
        "t.jsonl": '{"prompt": "a"}\n\n{"prompt": "süß"}\n',
    }
    assert message in refused(name, content[name].encode(encoding))


# --------------------------------------------------------------------------------- lines of prompts
def test_lines_of_the_web_uis_set_columns(build: Build) -> None:
    content = (
        '--prompt "a sunset, --wide" --negative_prompt "orange, pink" --width 1024 --height 768 '
        "--steps 10 --cfg_scale 3.5 --seed 9\n"
        "--prompt photo of a winter forest --steps 7 --seed -1\n"
        "a plain prompt -- with dashes, well-known\n"
    )
    assert build("t.txt", content) == {
        "prompt": [
            "a sunset, --wide",
            "photo of a winter forest",
            "a plain prompt -- with dashes, well-known",
        ],
        "negative_prompt": ["orange, pink", None, None],
        "width": [1024, None, None],
        "height": [768, None, None],
        "num_steps": [10, 7, None],
        "guidance_scale": [3.5, None, None],
        "seed": [9, None, None],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '--prompt "a" --sampler_name "DPM++ 2M"',
            "line 2: '--sampler_name' is not one of --steps",
        ),
        ('--prompt "a" --step 3', "'--step' is not one of"),
        ('--prompt "a" --steps', "line 2: --steps has no value"),
        ('--prompt "a" --steps 3 --steps 4', "--steps appears more than once"),
        ('--prompt "a" --steps 3 4', "'4' is not one of"),
        ('--prompt "a', "line 2: no closing quotation"),
        ("--prompt a --steps x", "line 2, num_steps = 'x': legal: an integer"),
        ("--steps 3", "line 2, prompt = null: a prompt is required"),
        ("a fox --ar 16:9 --v 6", "line 2: --ar behind a prompt"),
    ],
)
def test_options_that_no_column_takes_are_refused(
    refused: Callable[..., str], line: str, message: str
) -> None:
    assert message in refused("t.txt", f"first\n{line}\n")


# ----------------------------------------------------------------------------------------- Parquet
def test_parts_of_several_kinds_become_one_table(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    frame = pd.DataFrame({"prompt": ["a", "b"], "seed": [1, None], "shot": ["x", "y"]})
    frame.to_parquet(tmp_path / "parts" / "1.parquet")
    frame.assign(seed=[5, 6]).astype({"shot": "category"}).to_parquet(
        tmp_path / "parts" / "2.parquet"
    )
    built = build_manifest(tmp_path / "parts", tmp_path / "out.parquet", seeds=None)
    assert check_manifest(built.path).problems.count == 0
    table = pq.read_table(built.path).to_pydict()
    assert table["seed"] == [1, None, 5, 6]
    assert table["shot"] == ["x", "y", "x", "y"]
    with pytest.raises(ManifestError, match="would become a part of the source"):
        build_manifest(tmp_path / "parts", tmp_path / "parts" / "all.parquet")


def test_parquet_that_check_refuses_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"prompt": ["a", ""], "seed": ["1", "2"]}), source)
    with pytest.raises(ManifestError, match=r"bad\.parquet: column 'seed' has type string"):
        build_manifest(source, tmp_path / "out.parquet")
    pq.write_table(pa.table({"prompt": ["a", ""]}), source)
    with pytest.raises(ManifestError, match="row 1, prompt = ''"):
        build_manifest(source, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
