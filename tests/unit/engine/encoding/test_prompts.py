"""Texts: cleaned, cut, encoded as WanPipeline does, and each unique one once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_engine import MAX_TOKENS, Twin, request, small_spec, system
from toy_flux import flux_spec
from toy_sd3 import spec as sd3_spec

from batchgen.config.schema import ModelSpec
from batchgen.engine.encoding.prompts import PromptBook
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.loading.weights import load_components
from batchgen.errors import PromptTooLong
from batchgen.families.family import FamilyModel, Text, Tokens, family_code, told, told_to_each
from batchgen.numerics.remembered import Remembered

TEXTS = [
    "",
    "a cat",
    "  white \n\t space  ",
    "&lt;b&gt;html&amp;amp;&lt;/b&gt;",
    "mojibake sch\u00c3\u00b6n",
    "\U0001f534 \U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 right to left",
    "\u7ea2\u8272\u7684\u5706\u5708\u5411\u5de6\u79fb\u52a8",
    "exactly15tokens",
    "exactly16 tokens",
    "word " * 200,
]


@pytest.fixture(scope="module")
def wan(small_folder: Path) -> FamilyModel:
    spec = small_spec(str(small_folder))
    components = load_components(spec, torch.float32)
    return family_code("wan").build(spec, system(), components, torch.device("cpu"))


@pytest.fixture(scope="module")
def twin(small_folder: Path) -> Twin:
    return Twin(small_spec(str(small_folder)))


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_conditions_equal_the_pipelines_embeddings(wan: Any, twin: Twin, text: str) -> None:
    """Bit-equal, with the padding that the transformer attends to."""
    tokens = wan.tokenize(text)
    theirs, _ = twin.pipeline.encode_prompt(
        text, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
    )
    assert torch.equal(wan._padded(wan.encode(tokens)), theirs)


def test_tokens_are_counted_before_the_cut(wan: FamilyModel) -> None:
    """The end-of-text token counts; one byte is one token of this tokenizer."""
    counts = {text: wan.tokenize(text) for text in TEXTS}
    assert counts[""].count == 1
    assert (counts["a cat"].count, counts["a cat"].truncated) == (6, False)
    assert (counts["exactly15tokens"].count, counts["exactly15tokens"].truncated) == (16, False)
    assert (counts["exactly16 tokens"].count, counts["exactly16 tokens"].truncated) == (17, True)


@pytest.mark.parametrize(
    "text",
    ["a red circle " * 7700, "\u7ea2\u8272" * 50_000, "\U0001f534" * 100_000, "x" * 100_000],
    ids=["words", "cjk", "emoji", "one word"],
)
def test_a_prompt_of_100k_characters_is_quick(wan: FamilyModel, text: str) -> None:
    begin = time.process_time()
    tokens = wan.tokenize(text)
    assert time.process_time() - begin < 3.0
    assert tokens.truncated
    assert tokens.inputs[0].shape == (1, MAX_TOKENS)


class Counting:
    """A family whose encoder counts its calls and fails on request."""

    max_tokens = 8

    def __init__(self) -> None:
        self.encoded: list[Text] = []

    def texts(self, row: Any) -> tuple[Text, ...]:
        prompt = told(row.prompt, row.prompt_2)
        return (prompt, row.negative_prompt) if row.guidance_scale > 1 else (prompt,)

    def tokenize(self, text: Text) -> Tokens:
        self.encoded.append(text)
        counted = told_to_each(text, 2)[-1]
        return Tokens((), len(counted), len(counted) > self.max_tokens)

    def encode(self, tokens: Tokens) -> tuple[torch.Tensor, ...]:
        if self.encoded[-1] == "crash":
            raise RuntimeError("encoder broke")
        return (torch.full((1, 4, 64), float(tokens.count)),)  # 1 KiB


def book(**changes: Any) -> PromptBook:
    options: dict[str, Any] = {"overflow": "truncate"}
    return PromptBook(Counting(), **(options | changes))  # type: ignore[arg-type]


def test_a_text_is_encoded_once_in_a_window_and_across_windows() -> None:
    prompts = book()
    first = [request(i, prompt=f"p{i % 2}", negative_prompt="n") for i in range(6)]
    second = [request(9, prompt="p1", negative_prompt="n"), request(10, prompt="n")]
    rows = prompts.encode(first) + prompts.encode(second)
    assert prompts.family.encoded == ["p0", "n", "p1", "blur"]  # type: ignore[attr-defined]
    assert (prompts.encoder_calls, prompts.unique_texts) == (4, 4)
    assert all(torch.equal(row.conditions[1][0], rows[0].conditions[1][0]) for row in rows[:7])
    assert not prompts.needs_encoder(first)
    assert prompts.needs_encoder([request(11, prompt="new")])


def test_a_text_is_what_each_encoder_reads() -> None:
    """Null is the prompt, and an empty text is none."""
    prompts = book(overflow="error")
    seconds = (None, "p", "", "q", "much too long")
    rows = prompts.encode(
        [request(i, prompt="p", prompt_2=s, guidance_scale=1.0) for i, s in enumerate(seconds)]
    )
    read = ["p", ("p", ""), ("p", "q"), ("p", "much too long")]
    assert prompts.family.encoded == read  # type: ignore[attr-defined]
    assert [row.prompt_tokens for row in rows[:4]] == [1, 1, 0, 1]
    assert "13 tokens" in str(rows[4].error) and "'much too long'" in str(rows[4].error)


def test_every_text_is_a_sign_of_life() -> None:
    prompts = book()
    signs: list[int] = []
    rows = [request(i, prompt=f"p{i % 3}", negative_prompt="n") for i in range(6)]
    prompts.encode(rows, lambda: signs.append(len(prompts.family.encoded)))  # type: ignore[attr-defined]
    assert signs == [1, 2, 3, 4]


def test_no_negative_prompt_is_encoded_without_guidance() -> None:
    prompts = book()
    (row,) = prompts.encode([request(0, prompt="p", guidance_scale=1.0)])
    assert prompts.family.encoded == ["p"]  # type: ignore[attr-defined]
    assert len(row.conditions) == 1


def test_texts_go_side_by_side_and_who_finds_no_room_there_alone() -> None:
    """So many at once; a text that is at fault is not tried again."""
    packs: list[int] = []

    def together(works: Any) -> list[Any]:
        packs.append(len(works))
        found = [attempt(work) for work in works]
        return [*found[:-1], Failed(torch.OutOfMemoryError("full"), 0.0)]

    prompts = book(together=lambda: together)
    names = ["crash", *(f"p{i}" for i in range(10))]
    rows = prompts.encode([request(i, prompt=n, guidance_scale=1.0) for i, n in enumerate(names)])
    assert packs == [8, 3]
    assert isinstance(rows[0].error, RuntimeError) and not any(row.error for row in rows[1:])
    assert prompts.family.encoded == [*names, "p6", "p9"]  # type: ignore[attr-defined]


def test_the_time_of_a_text_is_shared_by_its_rows() -> None:
    """Shares add up to the time that encoding took."""
    prompts = book()
    rows = prompts.encode([request(i, prompt=f"p{i % 3}") for i in range(9)])
    spent = sum(text.seconds for text in prompts._kept.values())
    assert sum(row.seconds for row in rows) == pytest.approx(spent)
    assert prompts.encode([request(0, prompt="p0")])[0].seconds == 0.0


def test_kept_embeddings_are_bounded_and_the_oldest_use_goes_first() -> None:
    prompts = book(keep_bytes=3 * 1024)
    for text in ("a", "b", "c", "a", "d"):
        prompts.encode([request(0, prompt=text, guidance_scale=1.0)])
    assert list(prompts._kept) == ["c", "a", "d"]
    assert prompts.unique_texts == 4


def test_a_long_prompt_fails_its_row_alone_under_the_policy_error() -> None:
    prompts = book(overflow="error")
    rows = prompts.encode([request(0, prompt="short"), request(1, prompt="much too long")])
    assert rows[0].error is None
    assert isinstance(rows[1].error, PromptTooLong)
    assert "13 tokens" in str(rows[1].error)
    assert "takes 8" in str(rows[1].error)


def test_a_long_prompt_is_recorded_under_the_policy_truncate() -> None:
    (row,) = book().encode([request(0, prompt="much too long")])
    assert (row.prompt_tokens, row.prompt_truncated, row.error) == (13, True, None)


def test_a_negative_prompt_that_is_cut_says_so() -> None:
    rows = book().encode(
        [
            request(0, prompt="short", negative_prompt="much too long"),
            request(1, prompt="short", negative_prompt="much too long", guidance_scale=1.0),
        ]
    )
    assert [r.prompt_truncated for r in rows] == [False, False]
    assert [r.negative_prompt_truncated for r in rows] == [True, False]
    assert [r.negative_prompt_tokens for r in rows] == [13, 0]
    refused = book(overflow="error").encode([request(0, prompt="a", negative_prompt="b" * 20)])
    assert str(refused[0].error).startswith("negative prompt has 20 tokens")


def test_an_encoder_error_fails_the_rows_of_that_text_alone() -> None:
    rows = book().encode(
        [request(0, prompt="crash"), request(1, prompt="fine"), request(2, negative_prompt="crash")]
    )
    assert [type(row.error) for row in rows] == [RuntimeError, type(None), RuntimeError]


@pytest.mark.parametrize("spec", [flux_spec(), sd3_spec()], ids=["flux", "sd3"])
@torch.no_grad()
def test_an_encoder_reads_a_text_once_whatever_the_others_read(spec: ModelSpec) -> None:
    """Rows that differ in what the CLIPs are told share T5's states, bit for bit."""
    components = load_components(spec, torch.float32, stages=("encode", "denoise"))

    def built() -> FamilyModel:
        return family_code(spec.family).build(spec, system(), components, torch.device("cpu"))

    calls: list[str] = []
    encoders = [name for name in components if name.startswith("text_encoder")]
    for name in encoders:
        components[name].register_forward_hook(lambda *_, name=name: calls.append(name))
    last = encoders[-1]  # T5
    texts = [("a house", *("a dog",) * (len(encoders) - 1))]
    texts += [("a tree", *texts[0][1:]), (*texts[0][:-1], "a cat"), texts[0]]
    sharing = built()
    shared = [sharing.encode(sharing.tokenize(text)) for text in texts]
    assert sorted(calls) == sorted(["text_encoder"] * 2 + encoders[1:-1] + [last] * 2)
    for text, found in zip(texts, shared, strict=True):
        alone = built()
        assert all(map(torch.equal, found, alone.encode(alone.tokenize(text))))


def test_an_encoder_forgets_what_it_was_told_first() -> None:
    told: list[int] = []
    read = Remembered(lambda ids: (told.append(int(ids)), ids), last=2)
    for number in (1, 2, 1, 3, 1, 2):
        read(torch.tensor([[number]]))
    assert told == [1, 2, 3, 2]
