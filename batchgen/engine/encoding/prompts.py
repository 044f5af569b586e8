"""Texts of a window: each unique text is encoded once, in no batch.

In none, because an encoder's batch changes the last bits of an embedding and a row's pixels must
not depend on the texts beside it. They go one after the other, or side by side (`abreast`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Literal

from batchgen.engine.contract import unheard
from batchgen.engine.encoding.texts import StoredText, TextStore
from batchgen.engine.isolation import Failed, attempt, is_short
from batchgen.errors import PromptTooLong
from batchgen.failpoints import failpoint
from batchgen.families.family import Condition, FamilyModel, Text
from batchgen.families.streaming import TEXTS_ABREAST
from batchgen.request import Request

KEEP_BYTES = 256 * 1024**2  # embeddings kept for later windows


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """One text as the transformer is told it."""

    condition: Condition
    count: int  # tokens before truncation
    truncated: bool
    seconds: float = 0.0

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.condition)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRow:
    """A row whose texts are encoded (`error` is None) or that cannot be drawn."""

    request: Request
    conditions: tuple[Condition, ...]
    prompt_tokens: int
    prompt_truncated: bool
    seconds: float  # the row's share of encoding
    error: Exception | None = None
    negative_prompt_tokens: int = 0  # 0 where the row is drawn without guidance
    negative_prompt_truncated: bool = False
    shared: Condition = ()  # what its images come to


Work = Callable[[], EncodedText]
Together = Callable[[Sequence[Work]], Sequence[EncodedText | Failed]]


def apart() -> None:
    """Texts are encoded one after the other."""


class PromptBook:
    """Encoded texts, kept across windows up to a bound, oldest use forgotten first."""

    def __init__(
        self,
        family: FamilyModel,
        overflow: Literal["truncate", "error"],
        keep_bytes: int = KEEP_BYTES,
        store: TextStore | None = None,
        attempt: Callable[[Work], EncodedText | Failed] = attempt,
        together: Callable[[], Together | None] = apart,
    ) -> None:
        """`attempt`: what stands between a text that fails and the others; `together`: says what
        encodes several side by side now, if they are better so."""
        self.family = family
        self.store, self.attempt, self.together = store, attempt, together
        self.overflow = overflow
        self.keep_bytes = keep_bytes
        self.encoder_calls = 0
        self._seen: set[int] = set()
        self._kept: OrderedDict[Text, EncodedText] = OrderedDict()

    @property
    def unique_texts(self) -> int:
        """Different texts encoded so far."""
        return len(self._seen)

    @property
    def from_disk(self) -> int:
        """Texts that were encoded by others, or before."""
        return 0 if self.store is None else self.store.hits

    def needs_encoder(self, requests: Sequence[Request]) -> bool:
        """Whether any text of these rows is neither kept already nor on disk."""
        texts = dict.fromkeys(text for r in requests for text in self.family.texts(r))
        return any([text not in self._kept and not self._recover(text) for text in texts])

    def encode(
        self, requests: Sequence[Request], moved: Callable[[], object] = unheard
    ) -> list[EncodedRow]:
        """Encode a window; a row whose text fails comes back with its error, the others go on.

        The time of a text is shared equally by the rows of the window that use it; `moved` is told
        of each text."""
        wanted = [
            text for request in requests for text in dict.fromkeys(self.family.texts(request))
        ]
        users = {text: wanted.count(text) for text in dict.fromkeys(wanted)}
        results = self._abreast([*users], moved)
        for text in users:
            if text not in results:
                results[text] = self._lookup(text)
            moved()
        rows = [self._row(request, results, users) for request in requests]
        self._forget()
        return rows

    def _abreast(
        self, texts: Sequence[Text], moved: Callable[[], object]
    ) -> dict[Text, EncodedText | Failed]:
        """Those that are encoded side by side. Who found no room there tries it alone."""
        run, found = self.together(), dict[Text, EncodedText | Failed]()
        if run is None:
            return found
        new = [text for text in texts if text not in self._kept and not self._recover(text)]
        for first in range(0, len(new), TEXTS_ABREAST):
            some, begin = new[first : first + TEXTS_ABREAST], perf_counter()
            results = run([partial(self._encode, text) for text in some])
            seconds = (perf_counter() - begin) / len(some)
            for text, result in zip(some, results, strict=True):
                if not is_short(result):
                    found[text] = self._kept_now(text, replace(result, seconds=seconds))
            moved()
        return found

    def _lookup(self, text: Text) -> EncodedText | Failed:
        kept = self._kept.get(text)
        if kept is not None:
            self._kept.move_to_end(text)
            return replace(kept, seconds=0.0)
        if self._recover(text):
            return self._kept[text]
        return self._kept_now(text, self.attempt(lambda: self._encode(text)))

    def _kept_now(self, text: Text, result: EncodedText | Failed) -> EncodedText | Failed:
        if isinstance(result, EncodedText):
            self._kept[text] = result
            if self.store is not None:
                self.store.put(text, StoredText(result.condition, result.count, result.truncated))
        return result

    def _recover(self, text: Text) -> bool:
        """Keep a text that is on disk."""
        begin = perf_counter()
        found = self.store.get(text) if self.store is not None else None
        if found is None:
            return False
        seconds = perf_counter() - begin
        self._kept[text] = EncodedText(found.condition, found.count, found.truncated, seconds)
        return True

    def _encode(self, text: Text) -> EncodedText:
        begin = perf_counter()
        tokens = self.family.tokenize(text)
        if tokens.truncated and self.overflow == "error":
            counted = text if isinstance(text, str) else text[-1]
            raise PromptTooLong(
                f"prompt has {tokens.count} tokens, the text encoder takes "
                f"{self.family.max_tokens} (model.prompt_overflow=truncate would cut it): "
                f"{counted[:80]!r}"
            )
        self.encoder_calls += 1
        self._seen.add(hash(text))
        failpoint("memory.encode")
        condition = self.family.encode(tokens)
        return EncodedText(condition, tokens.count, tokens.truncated, perf_counter() - begin)

    def _row(
        self, request: Request, results: dict[Text, EncodedText | Failed], users: dict[Text, int]
    ) -> EncodedRow:
        texts = self.family.texts(request)
        encoded = [results[text] for text in texts]
        share = sum(results[text].seconds / users[text] for text in dict.fromkeys(texts))
        for number, result in enumerate(encoded):
            if isinstance(result, Failed):
                error = _of_the_negative(result.error) if number else result.error
                return EncodedRow(request, (), 0, False, share, error)
        done = [result for result in encoded if isinstance(result, EncodedText)]
        conditions = tuple(result.condition for result in done)
        prompt, *others = done
        return EncodedRow(
            request,
            conditions,
            prompt.count,
            prompt.truncated,
            share,
            negative_prompt_tokens=sum(text.count for text in others),
            negative_prompt_truncated=any(text.truncated for text in others),
        )

    def _forget(self) -> None:
        total = sum(text.bytes for text in self._kept.values())
        while total > self.keep_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            total -= oldest.bytes


def _of_the_negative(error: Exception) -> Exception:
    """The error of a text, said of the negative prompt."""
    return PromptTooLong(f"negative {error}") if isinstance(error, PromptTooLong) else error
