"""Bad hosts: which machine is behind failures and deaths, and that no innocent one is."""

from __future__ import annotations

from collections.abc import Callable

from run_folder import RunFolder, die, fail

from batchgen.ledger.blame.rows import Blame, read_blame
from batchgen.ledger.events import End
from batchgen.ledger.restarts import fence_restart
from batchgen.records import Attempt


def blame(run_folder: RunFolder) -> Blame:
    return read_blame(run_folder.run, all_gone=True)


def test_a_host_on_which_three_rows_fail_is_bad_if_another_is_good(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    bad = run_folder.journal(number, task=0, host="n1")
    for row in (0, 1, 1):
        fail(run_folder, bad, row)
    good = run_folder.journal(number, task=1, host="n2")
    run_folder.render(good, 4)
    assert blame(run_folder).bad_hosts == {}, "two distinct rows"
    fail(run_folder, bad, 2)
    found = blame(run_folder)
    assert found.bad_hosts == {
        "n1": "rows failed there: 3; attempts died there with rows in flight: 0; "
        "rows rendered there: 0, on other hosts: 1"
    }
    fail(run_folder, good, 5)
    assert blame(run_folder).rows_failed_on(found.bad_hosts).tolist() == [0, 1, 2]
    assert blame(run_folder).rows_failed_on([]).tolist() == []
    run_folder.render(good, 0)
    assert blame(run_folder).rows_failed_on({"n1"}).tolist() == [1, 2]
    run_folder.render(bad, 3)
    assert blame(run_folder).bad_hosts == {}, "one was rendered"


def test_no_host_is_bad_while_none_is_good(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    for task in (0, 1):
        journal = run_folder.journal(number, task, host=f"n{task}")
        for row in range(4 * task, 4 * task + 4):
            fail(run_folder, journal, row)
    assert blame(run_folder).bad_hosts == {}


def test_rows_that_would_fail_anywhere_speak_against_no_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(6)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 1, host="n2"), 5)
    journal = run_folder.journal(number, host="n1")
    for row, error in enumerate(["PromptTooLong", "NonFiniteOutput"] * 2):
        fail(run_folder, journal, row, error)
    assert blame(run_folder).bad_hosts == {}


def test_deaths_speak_against_a_host_by_one_row_each(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Four rows in flight when the cluster killed their node once are no evidence against it."""
    run_folder = make_run_folder(8)
    run_folder.render(run_folder.journal(run_folder.submit(), host="n2"), 7)
    die(run_folder, run_folder.submit(), 0, 1, 2, 3, host="n1")
    assert blame(run_folder).bad_hosts == {}
    die(run_folder, run_folder.submit(), 0, 1, host="n1")
    assert blame(run_folder).bad_hosts == {}
    die(run_folder, run_folder.submit(), 1, host="n1")
    assert blame(run_folder).bad_hosts == {}, "rows 0 and 1, and both twice"
    die(run_folder, run_folder.submit(), 4, host="n1")
    assert list(blame(run_folder).bad_hosts) == ["n1"]


def test_the_deaths_of_a_convicted_row_speak_against_no_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(8)
    run_folder.render(run_folder.journal(run_folder.submit(), host="n2"), 7)
    for row in (0, 1, 2):
        die(run_folder, run_folder.submit(), row, host="n1", alone=True)
    assert list(blame(run_folder).bad_hosts) == ["n1"]
    for row in (0, 1, 2):
        die(run_folder, run_folder.submit(), row, host="n3", alone=True)
    assert blame(run_folder).bad_hosts == {}
    assert [verdict.row_index for verdict in blame(run_folder).convicted] == [0, 1, 2]


def test_an_attempt_that_gave_up_speaks_for_itself(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    with run_folder.journal(number, host="n1") as journal:
        journal.start(0, "row0000")
        journal.end(End(reason="SickNode", error="the first 5 rows failed"))
    assert blame(run_folder).bad_hosts == {}
    run_folder.render(run_folder.journal(number, 1, host="n2"), 7)
    assert blame(run_folder).bad_hosts == {
        "n1": "rows failed there: 0; attempts died there with rows in flight: 0; "
        "an attempt gave up there since row after row failed; "
        "rows rendered there: 0, on other hosts: 1"
    }


# rows that are to blame themselves


def sick(run_folder: RunFolder, submission: int, host: str, *rows: int, task: int = 0) -> None:
    """An attempt whose first rows all fail."""
    with run_folder.journal(submission, task, host=host) as journal:
        for row in rows:
            fail(run_folder, journal, row)
        journal.end(End(reason="SickNode", error="the first rows failed"))


def test_a_row_that_fails_on_two_hosts_is_tried_no_more(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Five rows too large for any machine, at the head of a shard: both machines that tried them
    are good."""
    run_folder = make_run_folder(12)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 1, host="n2"), 10)
    run_folder.render(run_folder.journal(number, 2, host="n3"), 11)
    sick(run_folder, number, "n1", 0, 1, 2, 3, 4)
    found = blame(run_folder)
    assert list(found.bad_hosts) == ["n1"]
    assert found.rows_failed_on(found.bad_hosts).tolist() == [0, 1, 2, 3, 4]
    sick(run_folder, run_folder.submit(range(10)), "n4", 0, 1, 2, 3, 4)
    found = blame(run_folder)
    assert found.bad_hosts == {}
    assert found.rows_failed_on({"n1", "n4"}).tolist() == []


def test_one_row_of_its_own_speaks_against_a_host_that_gave_up(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(12)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 1, host="n2"), 10)
    sick(run_folder, number, "n1", 0, 1, 2, 3, 4)
    sick(run_folder, run_folder.submit(range(10)), "n4", 1, 2, 3, 4, 5)
    found = blame(run_folder)
    assert list(found.bad_hosts) == ["n1", "n4"]
    assert found.rows_failed_on(found.bad_hosts).tolist() == [0, 5]


def test_whoever_is_rendered_at_last_was_not_to_blame(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Two sick machines cannot make a row guilty for good, nor each other innocent."""
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    good = run_folder.journal(number, 1, host="n3")
    run_folder.render(good, 7)
    sick(run_folder, number, "n1", 0, 1, 2)
    number = run_folder.submit(range(7))
    sick(run_folder, number, "n2", 0, 1, 2)
    assert blame(run_folder).bad_hosts == {}
    good = run_folder.journal(number, 1, host="n3")
    for row in (0, 1, 2):
        run_folder.render(good, row)
    assert list(blame(run_folder).bad_hosts) == ["n1", "n2"]


def test_a_row_that_fails_twice_on_one_host_may_do_better_elsewhere(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 1, host="n2"), 7)
    sick(run_folder, number, "n1", 0, 1, 2)
    sick(run_folder, run_folder.submit(range(7)), "n1", 0, 1, 2)
    found = blame(run_folder)
    assert list(found.bad_hosts) == ["n1"]
    assert found.rows_failed_on({"n1"}).tolist() == [0, 1, 2]


# machines that break


def broken(run_folder: RunFolder, submission: int, host: str, *rows: int, task: int = 0) -> None:
    """An attempt that renders row 10 + task, and then fails."""
    with run_folder.journal(submission, task, host=host) as journal:
        run_folder.render(journal, 10 + task)
        for row in rows:
            fail(run_folder, journal, row)
        journal.end(End(reason="SickNode", error="3 rows in a row failed"))


def test_a_host_that_gave_up_after_its_last_good_row_is_bad(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(16)
    number = run_folder.submit()
    broken(run_folder, number, "n1", 0, 1, 2)
    assert blame(run_folder).bad_hosts == {}, "no other one is good"
    good = run_folder.journal(number, 1, host="n2")
    run_folder.render(good, 15)
    found = blame(run_folder)
    assert found.bad_hosts == {
        "n1": "rows failed there: 3; attempts died there with rows in flight: 0; "
        "an attempt gave up there since row after row failed; "
        "rows rendered there: 1, on other hosts: 1"
    }
    assert found.rows_failed_on(found.bad_hosts).tolist() == [0, 1, 2]
    run_folder.render(run_folder.journal(number, 2, host="n1"), 14)
    assert blame(run_folder).bad_hosts == {}, "it has recovered"


def test_a_host_on_which_rows_that_fail_anywhere_follow_a_good_one_is_good(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(16)
    number = run_folder.submit()
    broken(run_folder, number, "n1", 0, 1, 2)
    broken(run_folder, run_folder.submit(range(10)), "n2", 0, 1, 2, task=1)
    found = blame(run_folder)
    assert (found.bad_hosts, found.rows_failed_on({"n1", "n2"}).tolist()) == ({}, [])


def test_what_a_fenced_off_attempt_rendered_clears_no_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(16)
    zombie = run_folder.journal(run_folder.submit(), 3, host="n1")
    number = run_folder.submit()
    broken(run_folder, number, "n1", 0, 1, 2)
    run_folder.render(run_folder.journal(number, 1, host="n2"), 15)
    run_folder.render(zombie, 14)
    assert list(blame(run_folder).bad_hosts) == ["n1"]


def test_a_host_where_rows_come_out_as_nan_one_after_the_other_is_bad(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Until they do so elsewhere too."""
    run_folder = make_run_folder(16)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 9, host="n3"), 15)
    for host in ("n1", "n2"):
        with run_folder.journal(number, host=host) as journal:
            for row in (0, 1, 2):
                run_folder.fail(journal, row)
            fail(run_folder, journal, 3 if host == "n1" else 4, "PromptTooLong")
            journal.end(End(reason="SickNode", error="3 rows in a row failed"))
        found = blame(run_folder)
        if host == "n1":
            assert list(found.bad_hosts) == ["n1"]
            assert found.rows_failed_on({"n1"}).tolist() == [0, 1, 2, 3]
        number = run_folder.submit(range(10))
    assert found.bad_hosts == {}


# attempts that come to no row


def fall(
    run_folder: RunFolder,
    submission: int,
    host: str,
    task: int,
    error: str = "WeightsError",
    replica: int = 0,
) -> None:
    """An attempt that cannot even load."""
    with run_folder.journal(submission, task, replica=replica, host=host) as journal:
        journal.end(End(reason=error, error="/weights is missing"))


def test_a_host_where_loading_fails_is_bad(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    fall(run_folder, number, "n1", 0)
    fall(run_folder, number, "n1", 0, replica=1)
    run_folder.render(run_folder.journal(number, 1, host="n2"), 7)
    assert blame(run_folder).bad_hosts == {}, "one start of one task"
    fall(run_folder, number, "n1", 2)
    assert blame(run_folder).bad_hosts == {
        "n1": "rows failed there: 0; attempts died there with rows in flight: 0; "
        "starts of tasks that came to no row there: 2, the last one by WeightsError: /weights is "
        "missing; rows rendered there: 0, on other hosts: 1"
    }
    run_folder.render(run_folder.journal(number, 3, host="n1"), 0)
    assert blame(run_folder).bad_hosts == {}


def test_a_host_where_attempts_die_before_their_first_row_is_bad(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 1, host="n2"), 7)
    die(run_folder, number, host="n1")
    fence_restart(run_folder.run, Attempt(number, 0, 1, 0))
    assert blame(run_folder).bad_hosts == {}
    die(run_folder, number, host="n1", restart=1)
    reason = blame(run_folder).bad_hosts["n1"]
    assert "came to no row there: 2, the last one by a death before its first row;" in reason


def test_kills_after_a_signal_speak_against_no_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Preempted twice while a large model loads, and with rows in flight."""
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 9, host="n2"), 7)
    for task, rows in enumerate(((), (), (0,), (1,), (2,))):
        journal = run_folder.journal(number, task, host="n1")
        for row in rows:
            journal.start(row, f"row{row:04d}")
        journal.signalled("SIGTERM")
        journal.close()
    assert len(blame(run_folder).deaths) == 6
    assert blame(run_folder).bad_hosts == {}


def test_a_mate_that_had_begun_a_row_speaks_for_the_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """The task was killed as a whole while one of its ranks was still loading."""
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 9, host="n2"), 7)
    for task in (0, 1):
        die(run_folder, number, host="n1", task=task)
        mate = run_folder.journal(number, task, replica=1, host="n1")
        mate.start(task, f"row{task:04d}")
        mate.close()
    assert blame(run_folder).bad_hosts == {}
    for task in (2, 3):
        die(run_folder, number, host="n1", task=task)
        mate = run_folder.journal(number, task, replica=1, host="n3")  # another one's node
        mate.start(task, f"row{task:04d}")
        mate.close()
    assert list(blame(run_folder).bad_hosts) == ["n1"]


def test_what_ends_every_attempt_speaks_against_no_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """A full disk, an unknown run, a person, a stale file handle; an error that a good host met in
    that submission."""
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 0, host="n2"), 7)
    nobodys = ("StorageError", "RunStateError", "KeyboardInterrupt", "OSError", "OSError")
    for task, reason in enumerate(nobodys, 1):
        fall(run_folder, number, "n1", task, reason)
    with run_folder.journal(number, 6, host="n1") as journal:
        journal.end(End(reason="drained"))
    number = run_folder.submit()
    for task, host in enumerate(("n1", "n1", "n2")):
        fall(run_folder, number, host, task)
    assert blame(run_folder).bad_hosts == {}


def test_ranks_that_are_killed_since_another_one_fell_speak_against_no_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """A task of two nodes: the error of one ends the ranks of the other."""
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    run_folder.render(run_folder.journal(number, 9, host="n2"), 7)
    for task in (0, 1):
        fall(run_folder, number, "n1", task)
        run_folder.journal(number, task, replica=1, host="n3").close()
    assert list(blame(run_folder).bad_hosts) == ["n1"]


def test_what_falls_after_its_rows_were_taken_over_speaks_against_no_host(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(8)
    number = run_folder.submit()
    zombies = [run_folder.journal(number, task, host="n1") for task in (0, 1)]
    run_folder.render(run_folder.journal(run_folder.submit(), host="n2"), 7)
    for zombie in zombies:
        zombie.end(End(reason="RuntimeError", error="boom"))
        zombie.close()
    assert blame(run_folder).bad_hosts == {}


# machines that break down later


def fell(run_folder: RunFolder, submission: int, task: int, host: str, end: End) -> None:
    """An attempt that comes to no row."""
    with run_folder.journal(submission, task, host=host) as journal:
        journal.end(end)


def broke(host: str, reason: str = "RuntimeError") -> End:
    return End(reason=reason, error=f"{host} has no device")


def test_a_host_that_breaks_down_after_good_rows_is_bad(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(12)
    number = run_folder.submit()
    for task, host in enumerate(("n1", "n2")):
        with run_folder.journal(number, task, host=host) as journal:
            run_folder.render(journal, task)
            journal.end(End(reason="done"))
    fell(run_folder, number, 2, "n2", broke("n2"))
    fell(run_folder, number, 3, "n2", broke("n2", "OSError"))
    fell(run_folder, number, 4, "n2", broke("n2", "StorageError"))
    fell(run_folder, number, 8, "n2", broke("n2", "KeysChanged"))
    fell(run_folder, number, 9, "n2", broke("n2", "KeysChanged"))
    assert blame(run_folder).bad_hosts == {}, "one start; the others are not the machine's fault"
    with run_folder.journal(number, 5, host="n2") as journal:
        fail(run_folder, journal, 5)
        journal.end(broke("n2"))
    assert blame(run_folder).bad_hosts == {}, "that one came to a row"
    fell(run_folder, number, 6, "n2", broke("n2"))
    assert list(blame(run_folder).bad_hosts) == ["n2"]
    assert "starts of tasks that came to no row there: 2" in blame(run_folder).bad_hosts["n2"]
    assert blame(run_folder).rows_failed_on({"n2"}).tolist() == [5]
    run_folder.render(run_folder.journal(number, 7, host="n2"), 7)
    assert blame(run_folder).bad_hosts == {}, "it renders again"


def test_what_other_good_hosts_meet_too_breaks_none(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(12)
    number = run_folder.submit()
    for task, host in enumerate(("n1", "n2", "n3")):
        run_folder.render(run_folder.journal(number, task, host=host), task)
    same = End(reason="RuntimeError", error="the module is not there")
    for task, host in enumerate(("n1", "n1", "n2"), 3):
        fell(run_folder, number, task, host, same)
    assert blame(run_folder).bad_hosts == {}, "the job's fault"
    for task, host in enumerate(("n1", "n1", "n2", "n2"), 6):
        fell(run_folder, number, task, host, broke(host))
    assert blame(run_folder).bad_hosts == {}, "two of three: the cluster's"
    run_folder.render(run_folder.journal(number, 10, host="n4"), 10)
    assert list(blame(run_folder).bad_hosts) == ["n1", "n2"]
