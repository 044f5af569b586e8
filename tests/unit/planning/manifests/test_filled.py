"""Prompts made of columns and of lists, and rows of request batches."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchgen.errors import ManifestError
from batchgen.planning.manifests.building.build import build_manifest
from batchgen.planning.manifests.check import check_manifest


def build(source: Path, text: str, **options: object) -> list[dict[str, object]]:
    source.write_text(text, encoding="utf-8")
    out = source.with_name("out.parquet")
    built = build_manifest(source, out, **options)
    rows = pq.read_table(out).to_pylist()
    assert built.rows == len(rows)
    return rows


def test_a_template_makes_prompts_of_columns(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    rows = build(
        source,
        'style,object,n\ndark,a fox,1\n,"a {cat}, red",2\n',
        template="{{{style}}} photo of {object} no. {n}",
    )
    assert [r["prompt"] for r in rows] == [
        "{dark} photo of a fox no. 1", "{} photo of a {cat}, red no. 2",
    ]  # fmt: skip
    assert [r["style"] for r in rows] == ["dark", None]


def test_a_template_goes_over_prompts_and_swept_columns(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    rows = build(
        source, '{"prompt": "a fox"}\n', template="{prompt}, {num_steps} steps",
        sweeps={"num_steps": "2,3"},
    )  # fmt: skip
    assert [r["prompt"] for r in rows] == ["a fox, 2 steps", "a fox, 3 steps"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{styl}", r"no column 'styl'; there are style, prompt.*did you mean 'style'"),
        ("{style", "single '{'; write {{ for a brace"),
        ("style} {prompt}", "single '}'"),
        ("{style}", r"the source has prompts, and \{prompt\} is not in it"),
        ("{prompt:>9}", "no column 'prompt:>9'"),
        ("{prompt.__class__}", "no column"),
    ],
)
def test_templates_that_cannot_be_filled(template: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=words):
        build(tmp_path / "a.csv", "style,prompt\ndark,a fox\n", template=template)
    assert not (tmp_path / "out.parquet").exists()


# -------------------------------------------------------------------------------------- wildcards
@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    (folder / "places").mkdir(parents=True)
    (folder / "animal.txt").write_text("# mine\nfox\n\n  owl \nhare\n")
    (folder / "places" / "wild.txt").write_text("wood\nmoor\n")
    (folder / "empty.txt").write_text("# nothing\n\n")
    return folder


def test_wildcards_are_drawn_for_each_row_and_place(tmp_path: Path, lists: Path) -> None:
    text = "a __animal__ and a __animal__ in a __places/wild__\n"
    rows = build(tmp_path / "a.txt", text, wildcards=lists, seeds=64)
    again = build(tmp_path / "a.txt", text, wildcards=lists, seeds=64)
    assert rows == again
    words = [str(r["prompt"]).split() for r in rows]
    assert {w[1] for w in words} == {w[4] for w in words} == {"fox", "owl", "hare"}
    assert {w[7] for w in words} == {"wood", "moor"}
    assert any(w[1] != w[4] for w in words), "each place has a choice of its own"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a __animol__", "__animol__.*no such file.*did you mean 'animal'"),
        ("a __empty__", "empty.txt has no line to choose from"),
    ],
)
def test_lists_that_are_not_there(prompt: str, words: str, tmp_path: Path, lists: Path) -> None:
    with pytest.raises(ManifestError, match=f"(?i){words}"):
        build(tmp_path / "a.txt", prompt + "\n", wildcards=lists)


def test_without_lists_underscores_are_words(tmp_path: Path) -> None:
    assert build(tmp_path / "a.txt", "a __animal__\n")[0]["prompt"] == "a __animal__"


# ----------------------------------------------------------------------------------------- batches
def line(custom_id: str, **body: object) -> str:
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body}
    )


def test_a_request_batch_is_a_manifest(tmp_path: Path) -> None:
    text = "\n".join(
        [
            line("one", model="m", prompt="a fox", size="1024x768", n=1, seed=7),
            line("two", model="m", prompt="an owl", size="auto", user="u"),
        ]
    )
    rows = build(tmp_path / "batch.jsonl", text)
    assert rows == [
        {"row_id": "one", "prompt": "a fox", "seed": 7, "width": 1024, "height": 768},
        {"row_id": "two", "prompt": "an owl", "seed": None, "width": None, "height": None},
    ]
    assert check_manifest(tmp_path / "out.parquet").problems.count == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (line("a", prompt="x", n=4), "line 1: body.n is 4; .*--seeds"),
        (line("a", prompt="x", size="big"), "line 1: body.size is 'big'; write it as 1024x1024"),
        ('{"custom_id": "a", "body": "x"}', "line 1: body: 'x' is not an object"),
        (line("a b", prompt="x"), "row_id.*'a b'"),
        (line("a", size="8x8"), "prompt"),
    ],
)
def test_requests_that_are_no_rows(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=words):
        build(tmp_path / "batch.jsonl", text)
