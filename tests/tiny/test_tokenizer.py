"""The tokenizer takes any text and knows every word of the domain."""

from __future__ import annotations

import pytest
import torch

from batchgen.tiny import data
from batchgen.tiny.tokenizer import EOS, UNK, make_tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "🙂🙃",
        "עיגול אדום",
        "红色的圆",
        "\u200b\ufeff",
        "a\u0301\u0302",
        "red\ncircle\t",
        "'\"\\{}[]<>",
        "\ud7ff",
    ],
)
def test_any_text_is_safe(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(text, padding="max_length", max_length=32, truncation=True).input_ids
    assert len(ids) == 32
    assert all(0 <= i < len(tokenizer) for i in ids)
    assert tokenizer.eos_token_id in ids


def test_a_very_long_text_is_cut_and_still_ends_properly() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("red circle " * 10_000, max_length=32, truncation=True).input_ids
    assert len(ids) == 32
    assert ids[-1] == tokenizer.eos_token_id
    assert len(tokenizer("x" * 100_000).input_ids) == 2


def test_captions_hold_no_unknown_word() -> None:
    tokenizer = make_tokenizer()
    generator = torch.Generator().manual_seed(0)
    captions = [data.caption(s, generator, 0.3) for s in data.sample_scenes(2000, generator, "all")]
    longest = 0
    for ids in tokenizer(captions).input_ids:
        assert tokenizer.unk_token_id not in ids
        longest = max(longest, len(ids))
    assert longest <= 32


def test_case_and_punctuation_do_not_matter() -> None:
    tokenizer = make_tokenizer()
    plain = tokenizer("a red circle moving left").input_ids
    assert tokenizer("  A RED circle, moving-left!!").input_ids == plain
    assert tokenizer.convert_ids_to_tokens(tokenizer("zebra").input_ids) == [UNK, EOS]
