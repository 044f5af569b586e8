"""Bad hosts: which machine is behind failures and deaths, and that no innocent one is."""

from __future__ import annotations

from collections.abc import Callable

from run_folder import RunFolder, die, fail

from batchgen.ledger.blame.rows import Blame, read_blame
from batchgen.ledger.events import End
from batchgen.ledger.restarts import accept_restart
from batchgen.records import Attempt


def blame(lab: RunFolder) -> Blame:
    return read_blame(lab.run, all_gone=True)


def test_a_host_on_which_three_rows_fail_is_bad_if_another_is_good(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(8)
    number = lab.submit()
    bad = lab.journal(number, task=0, host="n1")
    for row in (0, 1, 1):
        fail(lab, bad, row)
    good = lab.journal(number, task=1, host="n2")
    lab.render(good, 4)
    assert blame(lab).bad_hosts == {}, "two distinct rows"
    fail(lab, bad, 2)
    found = blame(lab)
    assert found.bad_hosts == {
        "n1": "rows failed there: 3; attempts died there with rows in flight: 0; "
        "rows rendered there: 0, on other hosts: 1"
    }
    fail(lab, good, 5)
    assert blame(lab).rows_failed_on(found.bad_hosts).tolist() == [0, 1, 2]
    assert blame(lab).rows_failed_on([]).tolist() == []
    lab.render(good, 0)
    assert blame(lab).rows_failed_on({"n1"}).tolist() == [1, 2]
    lab.render(bad, 3)
    assert blame(lab).bad_hosts == {}, "one was rendered"


def test_no_host_is_bad_while_none_is_good(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(8)
    number = lab.submit()
    for task in (0, 1):
        journal = lab.journal(number, task, host=f"n{task}")
        for row in range(4 * task, 4 * task + 4):
            fail(lab, journal, row)
    assert blame(lab).bad_hosts == {}


def test_rows_that_would_fail_anywhere_speak_against_no_host(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(6)
    number = lab.submit()
    lab.render(lab.journal(number, 1, host="n2"), 5)
    journal = lab.journal(number, host="n1")
    for row, error in enumerate(["PromptTooLong", "NonFiniteOutput"] * 2):
        fail(lab, journal, row, error)
    assert blame(lab).bad_hosts == {}


def test_deaths_speak_against_a_host_by_one_row_each(make_lab: Callable[..., RunFolder]) -> None:
    """Four rows in flight when the cluster killed their node once are no evidence against it."""
    lab = make_lab(8)
    lab.render(lab.journal(lab.submit(), host="n2"), 7)
    die(lab, lab.submit(), 0, 1, 2, 3, host="n1")
    assert blame(lab).bad_hosts == {}
    die(lab, lab.submit(), 0, 1, host="n1")
    assert blame(lab).bad_hosts == {}
    die(lab, lab.submit(), 1, host="n1")
    assert blame(lab).bad_hosts == {}, "rows 0 and 1, and both twice"
    die(lab, lab.submit(), 4, host="n1")
    assert list(blame(lab).bad_hosts) == ["n1"]


def test_the_deaths_of_a_convicted_row_speak_against_no_host(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(8)
    lab.render(lab.journal(lab.submit(), host="n2"), 7)
    for row in (0, 1, 2):
        die(lab, lab.submit(), row, host="n1", alone=True)
    assert list(blame(lab).bad_hosts) == ["n1"]
    for row in (0, 1, 2):
        die(lab, lab.submit(), row, host="n3", alone=True)
    assert blame(lab).bad_hosts == {}
    assert [verdict.row_index for verdict in blame(lab).convicted] == [0, 1, 2]


def test_an_attempt_that_gave_up_speaks_for_itself(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(8)
    number = lab.submit()
    with lab.journal(number, host="n1") as journal:
        journal.start(0, "row0000")
        journal.end(End(reason="SickNode", error="the first 5 rows failed"))
    assert blame(lab).bad_hosts == {}
    lab.render(lab.journal(number, 1, host="n2"), 7)
    assert blame(lab).bad_hosts == {
        "n1": "rows failed there: 0; attempts died there with rows in flight: 0; "
        "an attempt gave up there since row after row failed; "
        "rows rendered there: 0, on other hosts: 1"
    }


# rows that are to blame themselves


def sick(lab: RunFolder, submission: int, host: str, *rows: int, task: int = 0) -> None:
    """An attempt whose first rows all fail."""
    with lab.journal(submission, task, host=host) as journal:
        for row in rows:
            fail(lab, journal, row)
        journal.end(End(reason="SickNode", error="the first rows failed"))


def test_a_row_that_fails_on_two_hosts_is_tried_no_more(make_lab: Callable[..., RunFolder]) -> None:
    """Five rows too large for any machine, at the head of a shard: both machines that tried them
    are good."""
    lab = make_lab(12)
    number = lab.submit()
    lab.render(lab.journal(number, 1, host="n2"), 10)
    lab.render(lab.journal(number, 2, host="n3"), 11)
    sick(lab, number, "n1", 0, 1, 2, 3, 4)
    found = blame(lab)
    assert list(found.bad_hosts) == ["n1"]
    assert found.rows_failed_on(found.bad_hosts).tolist() == [0, 1, 2, 3, 4]
    sick(lab, lab.submit(range(10)), "n4", 0, 1, 2, 3, 4)
    found = blame(lab)
    assert found.bad_hosts == {}
    assert found.rows_failed_on({"n1", "n4"}).tolist() == []


def test_one_row_of_its_own_speaks_against_a_host_that_gave_up(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(12)
    number = lab.submit()
    lab.render(lab.journal(number, 1, host="n2"), 10)
    sick(lab, number, "n1", 0, 1, 2, 3, 4)
    sick(lab, lab.submit(range(10)), "n4", 1, 2, 3, 4, 5)
    found = blame(lab)
    assert list(found.bad_hosts) == ["n1", "n4"]
    assert found.rows_failed_on(found.bad_hosts).tolist() == [0, 5]


def test_whoever_is_rendered_at_last_was_not_to_blame(make_lab: Callable[..., RunFolder]) -> None:
    """Two sick machines cannot make a row guilty for good, nor each other innocent."""
    lab = make_lab(8)
    number = lab.submit()
    good = lab.journal(number, 1, host="n3")
    lab.render(good, 7)
    sick(lab, number, "n1", 0, 1, 2)
    number = lab.submit(range(7))
    sick(lab, number, "n2", 0, 1, 2)
    assert blame(lab).bad_hosts == {}
    good = lab.journal(number, 1, host="n3")
    for row in (0, 1, 2):
        lab.render(good, row)
    assert list(blame(lab).bad_hosts) == ["n1", "n2"]


def test_a_row_that_fails_twice_on_one_host_may_do_better_elsewhere(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(8)
    number = lab.submit()
    lab.render(lab.journal(number, 1, host="n2"), 7)
    sick(lab, number, "n1", 0, 1, 2)
    sick(lab, lab.submit(range(7)), "n1", 0, 1, 2)
    found = blame(lab)
    assert list(found.bad_hosts) == ["n1"]
    assert found.rows_failed_on({"n1"}).tolist() == [0, 1, 2]


# machines that break


def broken(lab: RunFolder, submission: int, host: str, *rows: int, task: int = 0) -> None:
    """An attempt that renders row 10 + task, and then fails."""
    with lab.journal(submission, task, host=host) as journal:
        lab.render(journal, 10 + task)
        for row in rows:
            fail(lab, journal, row)
        journal.end(End(reason="SickNode", error="3 rows in a row failed"))


def test_a_host_that_gave_up_after_its_last_good_row_is_bad(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(16)
    number = lab.submit()
    broken(lab, number, "n1", 0, 1, 2)
    assert blame(lab).bad_hosts == {}, "no other one is good"
    good = lab.journal(number, 1, host="n2")
    lab.render(good, 15)
    found = blame(lab)
    assert found.bad_hosts == {
        "n1": "rows failed there: 3; attempts died there with rows in flight: 0; "
        "an attempt gave up there since row after row failed; "
        "rows rendered there: 1, on other hosts: 1"
    }
    assert found.rows_failed_on(found.bad_hosts).tolist() == [0, 1, 2]
    lab.render(lab.journal(number, 2, host="n1"), 14)
    assert blame(lab).bad_hosts == {}, "it has recovered"


def test_a_host_on_which_rows_that_fail_anywhere_follow_a_good_one_is_good(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(16)
    number = lab.submit()
    broken(lab, number, "n1", 0, 1, 2)
    broken(lab, lab.submit(range(10)), "n2", 0, 1, 2, task=1)
    found = blame(lab)
    assert (found.bad_hosts, found.rows_failed_on({"n1", "n2"}).tolist()) == ({}, [])


def test_what_a_fenced_off_attempt_rendered_clears_no_host(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(16)
    zombie = lab.journal(lab.submit(), 3, host="n1")
    number = lab.submit()
    broken(lab, number, "n1", 0, 1, 2)
    lab.render(lab.journal(number, 1, host="n2"), 15)
    lab.render(zombie, 14)
    assert list(blame(lab).bad_hosts) == ["n1"]


def test_a_host_where_rows_come_out_as_nan_one_after_the_other_is_bad(
    make_lab: Callable[..., RunFolder],
) -> None:
    """Until they do so elsewhere too."""
    lab = make_lab(16)
    number = lab.submit()
    lab.render(lab.journal(number, 9, host="n3"), 15)
    for host in ("n1", "n2"):
        with lab.journal(number, host=host) as journal:
            for row in (0, 1, 2):
                lab.fail(journal, row)
            fail(lab, journal, 3 if host == "n1" else 4, "PromptTooLong")
            journal.end(End(reason="SickNode", error="3 rows in a row failed"))
        found = blame(lab)
        if host == "n1":
            assert list(found.bad_hosts) == ["n1"]
            assert found.rows_failed_on({"n1"}).tolist() == [0, 1, 2, 3]
        number = lab.submit(range(10))
    assert found.bad_hosts == {}


# attempts that come to no row


def fall(
    lab: RunFolder,
    submission: int,
    host: str,
    task: int,
    error: str = "WeightsError",
    replica: int = 0,
) -> None:
    """An attempt that cannot even load."""
    with lab.journal(submission, task, replica=replica, host=host) as journal:
        journal.end(End(reason=error, error="/weights is missing"))


def test_a_host_where_loading_fails_is_bad(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(8)
    number = lab.submit()
    fall(lab, number, "n1", 0)
    fall(lab, number, "n1", 0, replica=1)
    lab.render(lab.journal(number, 1, host="n2"), 7)
    assert blame(lab).bad_hosts == {}, "one start of one task"
    fall(lab, number, "n1", 2)
    assert blame(lab).bad_hosts == {
        "n1": "rows failed there: 0; attempts died there with rows in flight: 0; "
        "starts of tasks that came to no row there: 2, the last one by WeightsError: /weights is "
        "missing; rows rendered there: 0, on other hosts: 1"
    }
    lab.render(lab.journal(number, 3, host="n1"), 0)
    assert blame(lab).bad_hosts == {}


def test_a_host_where_attempts_die_before_their_first_row_is_bad(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(8)
    number = lab.submit()
    lab.render(lab.journal(number, 1, host="n2"), 7)
    die(lab, number, host="n1")
    accept_restart(lab.run, Attempt(number, 0, 1, 0))
    assert blame(lab).bad_hosts == {}
    die(lab, number, host="n1", restart=1)
    reason = blame(lab).bad_hosts["n1"]
    assert "came to no row there: 2, the last one by a death before its first row;" in reason


def test_kills_after_a_signal_speak_against_no_host(make_lab: Callable[..., RunFolder]) -> None:
    """Preempted twice while a large model loads, and with rows in flight."""
    lab = make_lab(8)
    number = lab.submit()
    lab.render(lab.journal(number, 9, host="n2"), 7)
    for task, rows in enumerate(((), (), (0,), (1,), (2,))):
        journal = lab.journal(number, task, host="n1")
        for row in rows:
            journal.start(row, f"row{row:04d}")
        journal.signalled("SIGTERM")
        journal.close()
    assert len(blame(lab).deaths) == 6
    assert blame(lab).bad_hosts == {}


def test_a_mate_that_had_begun_a_row_speaks_for_the_host(
    make_lab: Callable[..., RunFolder],
) -> None:
    """The task was killed as a whole while one of its ranks was still loading."""
    lab = make_lab(8)
    number = lab.submit()
    lab.render(lab.journal(number, 9, host="n2"), 7)
    for task in (0, 1):
        die(lab, number, host="n1", task=task)
        mate = lab.journal(number, task, replica=1, host="n1")
        mate.start(task, f"row{task:04d}")
        mate.close()
    assert blame(lab).bad_hosts == {}
    for task in (2, 3):
        die(lab, number, host="n1", task=task)
        mate = lab.journal(number, task, replica=1, host="n3")  # another one's node
        mate.start(task, f"row{task:04d}")
        mate.close()
    assert list(blame(lab).bad_hosts) == ["n1"]


def test_what_ends_every_attempt_speaks_against_no_host(make_lab: Callable[..., RunFolder]) -> None:
    """A full disk, an unknown run, a person, a stale file handle; an error that a good host met in
    that submission."""
    lab = make_lab(8)
    number = lab.submit()
    lab.render(lab.journal(number, 0, host="n2"), 7)
    nobodys = ("StorageError", "RunStateError", "KeyboardInterrupt", "OSError", "OSError")
    for task, reason in enumerate(nobodys, 1):
        fall(lab, number, "n1", task, reason)
    with lab.journal(number, 6, host="n1") as journal:
        journal.end(End(reason="drained"))
    number = lab.submit()
    for task, host in enumerate(("n1", "n1", "n2")):
        fall(lab, number, host, task)
    assert blame(lab).bad_hosts == {}


def test_ranks_that_are_killed_since_another_one_fell_speak_against_no_host(
    make_lab: Callable[..., RunFolder],
) -> None:
    """A task of two nodes: the error of one ends the ranks of the other."""
    lab = make_lab(8)
    number = lab.submit()
    lab.render(lab.journal(number, 9, host="n2"), 7)
    for task in (0, 1):
        fall(lab, number, "n1", task)
        lab.journal(number, task, replica=1, host="n3").close()
    assert list(blame(lab).bad_hosts) == ["n1"]


def test_what_falls_after_its_rows_were_taken_over_speaks_against_no_host(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(8)
    number = lab.submit()
    zombies = [lab.journal(number, task, host="n1") for task in (0, 1)]
    lab.render(lab.journal(lab.submit(), host="n2"), 7)
    for zombie in zombies:
        zombie.end(End(reason="RuntimeError", error="boom"))
        zombie.close()
    assert blame(lab).bad_hosts == {}


# machines that break down later


def fell(lab: RunFolder, submission: int, task: int, host: str, end: End) -> None:
    """An attempt that comes to no row."""
    with lab.journal(submission, task, host=host) as journal:
        journal.end(end)


def broke(host: str, reason: str = "RuntimeError") -> End:
    return End(reason=reason, error=f"{host} has no device")


def test_a_host_that_breaks_down_after_good_rows_is_bad(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(12)
    number = lab.submit()
    for task, host in enumerate(("n1", "n2")):
        with lab.journal(number, task, host=host) as journal:
            lab.render(journal, task)
            journal.end(End(reason="done"))
    fell(lab, number, 2, "n2", broke("n2"))
    fell(lab, number, 3, "n2", broke("n2", "OSError"))
    fell(lab, number, 4, "n2", broke("n2", "StorageError"))
    fell(lab, number, 8, "n2", broke("n2", "KeysChanged"))
    fell(lab, number, 9, "n2", broke("n2", "KeysChanged"))
    assert blame(lab).bad_hosts == {}, "one start; the others are not the machine's fault"
    with lab.journal(number, 5, host="n2") as journal:
        fail(lab, journal, 5)
        journal.end(broke("n2"))
    assert blame(lab).bad_hosts == {}, "that one came to a row"
    fell(lab, number, 6, "n2", broke("n2"))
    assert list(blame(lab).bad_hosts) == ["n2"]
    assert "starts of tasks that came to no row there: 2" in blame(lab).bad_hosts["n2"]
    assert blame(lab).rows_failed_on({"n2"}).tolist() == [5]
    lab.render(lab.journal(number, 7, host="n2"), 7)
    assert blame(lab).bad_hosts == {}, "it renders again"


def test_what_other_good_hosts_meet_too_breaks_none(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(12)
    number = lab.submit()
    for task, host in enumerate(("n1", "n2", "n3")):
        lab.render(lab.journal(number, task, host=host), task)
    same = End(reason="RuntimeError", error="the module is not there")
    for task, host in enumerate(("n1", "n1", "n2"), 3):
        fell(lab, number, task, host, same)
    assert blame(lab).bad_hosts == {}, "the job's fault"
    for task, host in enumerate(("n1", "n1", "n2", "n2"), 6):
        fell(lab, number, task, host, broke(host))
    assert blame(lab).bad_hosts == {}, "two of three: the cluster's"
    lab.render(lab.journal(number, 10, host="n4"), 10)
    assert list(blame(lab).bad_hosts) == ["n1", "n2"]
