"""What a family does around its blocks."""

from __future__ import annotations

from torch import nn

from batchgen.numerics.around import Run, surround, surrounded


def test_a_stack_runs_what_is_around_a_block_over_what_stands_for_it() -> None:
    """A block by itself is as it was, so that graphs are made of it alone."""
    block, told = nn.Identity(), list[int]()
    assert surrounded(block, block) is block

    def around(run: Run) -> Run:
        def counted(x: int) -> int:
            told.append(x)
            found: int = run(x)
            return found

        return counted

    surround(block, around)
    assert block(1) == 1 and told == []
    assert surrounded(block, block)(2) == 2
    assert surrounded(block, lambda x: -x)(3) == -3
    assert told == [2, 3]
