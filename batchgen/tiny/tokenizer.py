"""The tokenizer of ``tiny-wan``: the words of the captions, and ``<unk>`` for all others."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from batchgen.tiny import domain

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"


def _phrases() -> Iterable[str]:
    yield from domain.TEMPLATES
    yield from domain.PARTIAL_TEMPLATES
    for table in (domain.COLOUR_WORDS, domain.SHAPE_WORDS, domain.BACKGROUND_WORDS):
        for words in table.values():
            yield from words
    for table in (domain.MOTION_PHRASES, domain.MOTION_VERBS):
        for words in table.values():
            yield from words


def vocabulary() -> list[str]:
    """All tokens in id order: the special ones, then the words of the domain sorted."""
    words = {
        word
        for phrase in _phrases()
        for word in re.findall(r"[a-z]+", re.sub(r"\{.\}", " ", phrase))
    }
    return [PAD, EOS, UNK, *sorted(words)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cases, splits at spaces and punctuation, looks words up; every text ends with
    ``</s>``."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[^\p{L}\p{N}\p{M}]*\s[^\p{L}\p{N}\p{M}]*|[\p{P}\s]+"), "removed"
            ),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, ids[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=512,
        padding_side="right",
        truncation_side="right",
    )
