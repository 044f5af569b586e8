"""LoRA files of rows: what passes, what enters the key, and what is refused by row and file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from toy_loras import as_planned, digest, factors, linears

from batchgen.cli.plans.caches import cache_lines
from batchgen.config.composing.compose import Composed, compose_job, recompose
from batchgen.errors import ConfigError, ManifestError
from batchgen.loras import NoLora, parse, written
from batchgen.planning.manifests.building.build import build_manifest
from batchgen.planning.manifests.check import check_manifest
from batchgen.planning.plan import make_plan, read_plan, read_requests
from batchgen.planning.pricing.layout import choose_layout, resolve_layout
from batchgen.planning.pricing.work import planned_work, read_work
from batchgen.planning.store import Plan, read_loras
from batchgen.request import Request
from batchgen.runner.loras import judge_of

JOB = Path(__file__).parents[4] / "jobs" / "demo.yaml"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """a.safetensors and b.safetensors, for the embedded model."""
    from batchgen.tiny.models import make_transformer

    model = make_transformer()
    for seed, name in enumerate("ab"):
        found = factors(model, linears(model)[:3], seed)
        save_file(found, tmp_path / f"{name}.safetensors")
    return tmp_path


def composed(folder: Path, loras: Any, *overrides: str) -> Composed:
    """The demo job over rows with these sets."""
    column = loras if isinstance(loras, pa.Array) else pa.array(loras)
    rows = {"prompt": ["p"] * len(column), "seed": [1] * len(column), "lora": column}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    return compose_job(JOB, [f"manifest={folder / 'rows.parquet'}", *overrides])


def planned(folder: Path, loras: Any, *overrides: str) -> Plan:
    job = composed(folder, loras, *overrides).config
    return make_plan(job, folder / "plan.parquet", judge=judge_of(job))


def requests(folder: Path, loras: Any, *overrides: str) -> list[Request]:
    return read_requests(planned(folder, loras, *overrides).path)


def refusal(folder: Path, loras: Any, *overrides: str) -> str:
    with pytest.raises(ManifestError) as caught:
        planned(folder, loras, *overrides)
    return str(caught.value)


def test_texts_and_lists_of_one_content_are_one_set(files: Path) -> None:
    (files / "copy.safetensors").write_bytes((files / "a.safetensors").read_bytes())
    both = as_planned(f"{files}/a.safetensors@0.5,{files}/b.safetensors@-2")
    texts = ["a.safetensors@0.5,b.safetensors@-2", " copy.safetensors@.5 , b.safetensors@-2e0"]
    lists = pa.array([text.split(",") for text in texts])
    for given in (texts, lists, pa.array(texts).dictionary_encode()):
        rows = requests(files, given)
        assert [row.lora for row in rows] == [both] * 2
        assert rows[0].row_key == rows[1].row_key
    assert both == f"{digest(files / 'a.safetensors')}@0.5,{digest(files / 'b.safetensors')}@-2.0"


def test_digest_strength_and_order_are_in_the_key_and_no_lora_is_not(files: Path) -> None:
    a, b = "a.safetensors", "b.safetensors"
    sets = [None, "", a, f"{a}@1", f"{a}@0.5", b, f"{a},{b}", f"{b},{a}"]
    rows = requests(files, pa.array(sets))
    keys = [row.row_key for row in rows]
    assert keys[0] == keys[1] and keys[2] == keys[3]
    assert len(set(keys)) == 6
    save_file({"x": torch.zeros(1)}, files / "c.safetensors")  # nobody names it
    plain = pa.table({"prompt": ["p"], "seed": [1]})
    pq.write_table(plain, files / "plain.parquet")
    job = compose_job(JOB, [f"manifest={files / 'plain.parquet'}"]).config
    [old] = read_requests(make_plan(job, files / "old.parquet").path)
    assert old.row_key == keys[0]


def test_a_plan_says_that_fits_of_caches_know_no_lora(files: Path) -> None:
    """Where rows follow one; they follow the same with LoRA files and without."""

    def told(loras: list[str | None], **cache: float) -> str:
        rows = ["row_defaults.num_steps=20", *(f"row_defaults.{n}={v}" for n, v in cache.items())]
        plan = planned(files, pa.array(loras, pa.string()), *rows)
        assert len({row.cache_table for row in read_requests(plan.path)}) == 1
        return cache_lines(plan).get("caches", "")

    note = "fits are looked up whatever LoRA files a row draws with"
    both = [None, "a.safetensors"]
    assert note in told(both, cache_ratio=0.5)
    for loras, cache in (
        ([None, None], {"cache_ratio": 0.5}),
        (both, {}),
        (both, {"cache_ratio": 0.45}),  # nothing is fitted for that
    ):
        assert note not in told(loras, **cache)


def test_the_job_gives_what_a_row_leaves_out(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path begins at the current folder, or at the job's; it is stored as an absolute one."""
    (files / "styles").mkdir()
    (files / "a.safetensors").rename(files / "styles" / "a.safetensors")
    monkeypatch.chdir(files / "styles")
    sets = pa.array([None, "", "b.safetensors"])
    for given in (
        "row_defaults.lora=a.safetensors@0.5",
        "row_defaults.lora=[a.safetensors@0.5]",
        "row_defaults.lora='a.safetensors@0.5'",
    ):
        rows = requests(files, sets, given)
        assert rows[0].lora == as_planned(f"{files}/styles/a.safetensors@0.5")
        assert rows[1].lora == "" != rows[2].lora
    made = composed(files, sets, "row_defaults.lora=[a.safetensors@0.5,../b.safetensors]")
    stored = made.resolved["row_defaults"]["lora"]
    assert stored == f"{files}/styles/a.safetensors@0.5,{files}/b.safetensors@1.0"
    monkeypatch.chdir("/")
    assert recompose(made.resolved).resolved["row_defaults"]["lora"] == stored
    for given, answer in (
        ("gone.safetensors", "there is no such file"),
        ("a@b", "row_defaults.lora: 'b' is no strength"),
    ):
        with pytest.raises(ConfigError, match=answer):
            planned(files, sets, f"row_defaults.lora={given}")


def test_the_plan_knows_the_files(files: Path) -> None:
    plan = planned(files, ["a.safetensors@0.5", "b.safetensors,a.safetensors", None])
    found = {name: file.path for name, file in read_loras(plan.path).items()}
    assert found == {digest(files / f"{n}.safetensors"): f"{files}/{n}.safetensors" for n in "ab"}
    assert read_plan(plan.path).loras == plan.loras
    values = sum(t.numel() for t in _tensors(files / "a.safetensors").values())
    assert all(file.values == values for file in plan.loras.values())
    job = composed(files, [None]).config
    works = [*planned_work(plan), *read_work(plan.path, np.arange(3), job.model)]
    assert {work.adapted for work in works} == {2 * values}


def test_the_memory_of_a_rank_has_room_for_them(files: Path) -> None:
    """In float32 on a CPU. What does not fit is refused with what they take."""
    plan = planned(files, ["a.safetensors"])
    job = composed(files, [None], "system.determinism=strict").config
    [work] = planned_work(plan)
    peaks = [choose_layout(job, [replace(work, adapted=n)]).vram_gib for n in (0, 2**28)]
    assert peaks[1] - peaks[0] == pytest.approx(1.0)
    with pytest.raises(ConfigError, match=r"fewer LoRA files in one run: these take 37\.25 GiB"):
        resolve_layout(job, [replace(work, adapted=10**10)])


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("gone.safetensors@1", "gone.safetensors: there is no such file"),
        ("a.safetensor", "a.safetensor: there is no such file (did you mean 'a.safetensors'?)"),
        ("a.safetensors@x", "'x' is no strength; legal: path@strength, a number of -100 .. 100"),
        ("a.safetensors@0", "'0' is no strength"),
        ("a.safetensors@nan", "'nan' is no strength"),
        ("a.safetensors@1e9", "'1e9' is no strength"),
        ("a.safetensors,", "'' names no file"),
        ("@1", "names no file"),
        ("a.safetensors@1,./a.safetensors@2", "a.safetensors is in it twice"),
        ("old.bin@1", "old.bin: is pickled; legal: .safetensors, which `batchgen weights convert`"),
        ("https://x/y.safetensors", "LoRA files are not fetched"),
        ("folder", "is a folder"),
        (f"{'0f' * 32}@1", "is the sha256 of a file, as catalogs and media tell it; give its path"),
        ("torn.safetensors", "torn.safetensors: is not a safetensors file, or cut off"),
        ("text.safetensors", "text.safetensors: is not a safetensors file, or cut off"),
        ("weights.safetensors", "holds no LoRA, but proj_out.weight"),
        ("transformer_2:a.safetensors", "is meant for transformer_2, which the model has not"),
    ],
)
def test_what_is_no_lora_is_refused_by_row_and_file(files: Path, given: str, answer: str) -> None:
    (files / "old.bin").write_bytes(b"x")
    (files / "folder").mkdir()
    whole = (files / "a.safetensors").read_bytes()
    (files / "torn.safetensors").write_bytes(whole[:-1])
    (files / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    save_file({"proj_out.weight": torch.zeros(2)}, files / "weights.safetensors")
    message = refusal(files, [None, given])
    assert "1 illegal value" in message and "row 1, lora = " in message
    assert answer in message


NOTHING = "transformer.blocks.0.attn1.to_x.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({NOTHING: (4, 192)}, f"holds {NOTHING[12:]}: the model has no such module"),
        (
            {"text_encoder.layers.0.q.lora_A.weight": (4, 8)},
            "holds text_encoder.layers.0.q.lora_A.weight: factors of a text encoder",
        ),
        (
            {"transformer_2.proj_out.lora_A.weight": (4, 192)},
            "is for transformer_2, which the model has not; it has transformer",
        ),
        (
            {"transformer.blocks.0.attn1.to_q.lora_A.weight": (4, 7)},
            "holds blocks.0.attn1.to_q.lora_A.weight of shape [4, 7], but",
        ),
        (
            {"transformer.blocks.0.attn1.to_q.lora_A.weight": (4,)},
            "holds blocks.0.attn1.to_q.lora_A.weight of shape [4], but",
        ),
        (
            {
                "transformer.blocks.0.attn1.to_q.lora_A.weight": (5, 192),
                "transformer.blocks.0.attn1.to_q.lora_B.weight": (192, 4),
            },
            "holds blocks.0.attn1.to_q.lora_A.weight of shape [5, 192], but the other factor has "
            "[192, 4]; legal: one rank, 1 or more",
        ),
        (
            {
                "transformer.blocks.0.attn1.to_q.lora_A.weight": (0, 192),
                "transformer.blocks.0.attn1.to_q.lora_B.weight": (192, 0),
            },
            "of shape [0, 192], but the other factor has [192, 0]; legal: one rank, 1 or more",
        ),
        (
            {"transformer.blocks.1.attn1.to_q.lora_B.weight": (192, 4)},
            "holds blocks.1.attn1.to_q.lora_B.weight without the other factor",
        ),
        (
            {"transformer.blocks.0.attn1.norm_q.weight": (192,)},
            "holds blocks.0.attn1.norm_q.weight: no factor of a LoRA",
        ),
        ({"transformer.proj_out.dora_scale": (1, 4)}, "DoRA; legal: LoRA alone"),
        ({"transformer.proj_out.lokr_w1": (1, 4)}, "LyCORIS; legal: LoRA alone"),
        ({"other.lora_A.weight": (1, 4)}, "holds other.lora_A.weight: nothing of the model"),
    ],
)
def test_keys_that_match_nothing_are_named(
    files: Path, changes: dict[str, tuple[int, ...]], answer: str
) -> None:
    tensors = _tensors(files / "a.safetensors")
    save_file(
        tensors | {name: torch.ones(shape) for name, shape in changes.items()},
        files / "odd.safetensors",
    )
    message = refusal(files, ["odd.safetensors@0.5", None])
    assert f"row 0, lora = 'odd.safetensors@0.5': {files}/odd.safetensors: " in message
    assert answer in message


def test_factors_are_numbers_with_a_point(files: Path) -> None:
    """Integers are of a quantisation whose scales nobody would apply."""
    whole = {name: t.to(torch.int8) for name, t in _tensors(files / "a.safetensors").items()}
    save_file(whole, files / "q.safetensors")
    assert "lora_A.weight in int8; legal: floating point" in refusal(files, ["q.safetensors"])


def test_names_of_wan_s_own_code_are_read_and_what_would_be_lost_is_refused(files: Path) -> None:
    """diffusers leaves changes of norms out without a word."""
    own = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 192),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(192, 4),
        "diffusion_model.blocks.0.norm3.diff": torch.zeros(192),
    }
    save_file(own, files / "own.safetensors")
    [row] = requests(files, ["own.safetensors"])
    assert row.lora == as_planned(f"{files}/own.safetensors")
    save_file(
        own | {"diffusion_model.blocks.0.norm3.diff": torch.ones(192)}, files / "own.safetensors"
    )
    message = refusal(files, ["own.safetensors"])
    assert "holds diffusion_model.blocks.0.norm3.diff: changes of norms" in message


def test_a_list_has_no_gaps(files: Path) -> None:
    message = refusal(files, pa.array([["a.safetensors", None], []]))
    assert "1 illegal value" in message and "row 0, lora = 'a.safetensors,null'" in message
    assert "'' names no file" in message


def test_of_two_experts_somebody_says_which(files: Path) -> None:
    """Wan2.2 A14B in its real dimensions, without weights."""
    shapes = {"lora_A": (4, 5120), "lora_B": (5120, 4)}
    one = {f"blocks.0.attn1.to_q.{n}.weight": torch.ones(s) for n, s in shapes.items()}
    first = {f"transformer.{name}": t for name, t in one.items()}
    second = {f"transformer_2.{name}": t.clone() for name, t in one.items()}
    save_file(first, files / "high.safetensors")
    save_file(first | second, files / "both.safetensors")
    model = ("model=wan2.2-t2v-a14b", "model.weights=random", "slurm=local")
    pair = "transformer:high.safetensors,transformer_2:high.safetensors@2"
    plan = planned(files, [pair, "both.safetensors"], *model)
    whole = digest(files / "high.safetensors")
    assert set(plan.loras) == {
        f"transformer:{whole}", f"transformer_2:{whole}", digest(files / "both.safetensors"),
    }  # fmt: skip
    assert read_requests(plan.path)[0].lora == f"transformer:{whole}@1.0,transformer_2:{whole}@2.0"
    message = refusal(files, ["high.safetensors", "transformer:both.safetensors"], *model)
    assert "for which of the model's two experts it is; legal: transformer:PATH, trans" in message
    assert "says itself what is for transformer and transformer_2; legal: PATH alone" in message


def test_a_model_without_them_refuses_the_column(files: Path) -> None:
    message = refusal(files, ["a.safetensors"], "model=null-engine")
    assert "row 0, lora = 'a.safetensors': is not served by null-engine yet" in message


def test_a_manifest_is_checked_and_built_with_them(files: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (files / "a.safetensors").rename(tmp_path / "src" / "a.safetensors")
    source = tmp_path / "src" / "rows.jsonl"
    lists = {"prompt": "p", "lora": ["a.safetensors@0.5", "../b.safetensors"]}
    source.write_text(json.dumps(lists) + '\n{"prompt": "q", "lora": "a.safetensors"}\n')
    out = tmp_path / "out" / "rows.parquet"
    build_manifest(source, out)
    assert pq.read_table(out)["lora"].to_pylist() == [
        "../src/a.safetensors@0.5,../b.safetensors@1.0",
        "../src/a.safetensors@1.0",
    ]
    assert not check_manifest(out).problems.count
    (tmp_path / "src" / "a.safetensors").unlink()
    assert check_manifest(out).problems.count == 2


@pytest.mark.parametrize("text", ["", "a@1.0", "transformer_2:a b@-0.25,transformer:c@1e-05"])
def test_sets_are_written_as_they_are_read(text: str) -> None:
    assert written(parse(text)) == text


def test_a_path_may_hold_an_at_and_a_colon() -> None:
    [one] = parse(["a@b:c@1"])
    assert (one.file, one.strength, one.expert) == ("a@b:c", 1.0, "")
    with pytest.raises(NoLora):
        parse(["a@b:c"])
