"""Images of a window: each is encoded once for each shape, and kept for later rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from time import perf_counter

from batchgen.engine.encoding.prompts import EncodedRow
from batchgen.engine.isolation import Failed, attempt
from batchgen.families.family import Condition, DrawsFromImages, FamilyModel
from batchgen.pictures import Read
from batchgen.request import Request

KEEP_BYTES = 256 * 1024**2  # conditions kept for later windows


class PictureBook:
    """What rows' images have come to, up to a bound, oldest use forgotten first."""

    def __init__(
        self,
        family: FamilyModel,
        read: Read,
        keep_bytes: int = KEEP_BYTES,
        attempt: Callable[[Callable[[], Condition]], Condition | Failed] = attempt,
    ) -> None:
        """`attempt`: what stands between a row whose images fail and the others."""
        self.family, self.read, self.keep_bytes = family, read, keep_bytes
        self.attempt = attempt
        self.encoder_calls = 0
        self._kept: OrderedDict[Hashable, Condition] = OrderedDict()

    def needs_encoder(self, requests: Sequence[Request]) -> bool:
        """Whether any image of these rows is not kept already."""
        return any(r.images and _key(r) not in self._kept for r in requests)

    def illustrated(self, row: EncodedRow) -> EncodedRow:
        """The row with what its images come to, or the error for which it cannot be drawn."""
        if row.error is not None or not row.request.images:
            return row
        begin = perf_counter()
        found = self.attempt(lambda: self._lookup(row.request))
        seconds = row.seconds + perf_counter() - begin
        if isinstance(found, Failed):
            return EncodedRow(row.request, (), 0, False, seconds, found.error)
        return replace(row, shared=found, seconds=seconds)

    def forget(self) -> None:
        """Keep no more than the bound."""
        total = sum(map(_bytes, self._kept.values()))
        while total > self.keep_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            total -= _bytes(oldest)

    def _lookup(self, request: Request) -> Condition:
        key = _key(request)
        if key not in self._kept:
            assert isinstance(self.family, DrawsFromImages)  # others' rows have no images
            images = [self.read(digest) for digest in request.images]
            self.encoder_calls += 1
            self._kept[key] = self.family.encode_images(request, images)
        self._kept.move_to_end(key)
        return self._kept[key]


def _key(request: Request) -> Hashable:
    """Rows of equal keys are drawn from the same."""
    return request.image, request.last_image, request.bucket


def _bytes(condition: Condition) -> int:
    return sum(tensor.nbytes for tensor in condition)
