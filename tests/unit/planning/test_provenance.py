"""What a run says of the code and the machine that it was made with."""

from __future__ import annotations

import pytest

from batchgen.planning import provenance
from batchgen.planning.provenance import git_commit


def test_a_git_that_did_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow file server at one look says nothing of the next; an answer stays."""
    answers = iter([None, "abc", None, "abc", "M file", "never asked for"])
    monkeypatch.setattr(provenance, "_output", lambda command: next(answers))
    provenance._commit.cache_clear()
    try:
        said = [git_commit() for _ in range(4)]
    finally:
        provenance._commit.cache_clear()
    assert said == [None, None, "abc-dirty", "abc-dirty"]
    assert next(answers) == "never asked for"
