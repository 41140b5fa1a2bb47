"""What is believed of a clock that jumps, stands at 1970, or was set right; and how the node counts its own days."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cxrnode.clock import AWAY_S, BEHIND_S, JUMP_S, RELEASED, Clock, Verdict, boot_id, uptime
from cxrnode.store import ledger
from cxrnode.store.database import Database
from tests.support.clock import DAY_S, Machine
from tests.support.store import kinds

HOUR, YEAR = 3600.0, 365 * DAY_S


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "ledger.sqlite")
    yield database
    database.close()


def test_the_kernels_clock_and_boot_are_those_of_this_machine() -> None:
    assert 0 < uptime() <= uptime()
    assert boot_id() == boot_id() != ""


def test_a_clock_that_goes_evenly_is_believed(database: Database) -> None:
    machine = Machine()
    clock = machine.clock()
    for seconds in (0, 1, 59, HOUR, 7 * DAY_S):
        machine.live(seconds)
        verdict = clock.look(database)
        assert (verdict.offset_s, verdict.why) == (0.0, "")
    with database.begin() as c:
        assert kinds(c) == []


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR, 30 * YEAR, JUMP_S + 1, -JUMP_S - 1])
def test_a_jump_while_the_node_runs_is_told_also_after_a_restart_until_it_is_undone(
    database: Database, jump_s: float
) -> None:
    machine = Machine()
    clock = machine.clock()
    clock.look(database)
    machine.live(10)
    machine.at += jump_s
    for _ in range(3):
        verdict = clock.look(database)
        assert verdict.offset_s == pytest.approx(jump_s)
        assert "ahead of" in verdict.why if jump_s > 0 else ("behind" in verdict.why)
        machine.live(HOUR)
    assert machine.clock().look(database).why  # a process that started since
    machine.at -= jump_s
    for again in (machine.clock(), clock):
        assert again.look(database) == Verdict(elapsed=again.look(database).elapsed)
    with database.begin() as c:
        assert kinds(c) == ["clock_doubted", "clock_believed"]


def test_what_ntp_mends_slowly_is_no_jump(database: Database) -> None:
    machine = Machine()
    clock = machine.clock()
    clock.look(database)
    machine.at += JUMP_S
    assert not clock.look(database).why


def test_at_1970_it_is_not_believed_and_then_set_right_it_is_at_once(database: Database) -> None:
    machine = Machine()
    right = machine.at
    machine.clock().look(database)
    machine.reboot()
    machine.at = 100.0
    clock = machine.clock()
    assert "before this version of cxrnode was made" in clock.look(database).why
    machine.live(2 * DAY_S)  # it is never settled for
    assert clock.look(database).offset_s == pytest.approx(100.0 + 2 * DAY_S - RELEASED)
    machine.at = right + 2 * DAY_S + 60
    assert not clock.look(database).why


def test_a_clock_of_1970_at_the_first_start_of_all(database: Database) -> None:
    machine = Machine(at=100.0)
    clock = machine.clock()
    assert clock.look(database).why
    machine.at = Machine().at
    assert not clock.look(database).why


@pytest.mark.parametrize("reboots", [False, True])
@pytest.mark.parametrize("jump_s", [-HOUR, 30 * YEAR, AWAY_S + HOUR])
def test_a_jump_while_nothing_runs(database: Database, jump_s: float, reboots: bool) -> None:
    machine = Machine()
    machine.clock().look(database)
    if reboots:
        machine.reboot()
    machine.at += jump_s
    clock = machine.clock()
    assert clock.look(database).why
    machine.at -= jump_s
    assert not clock.look(database).why


def test_a_node_that_was_off_for_a_while_believes_its_clock(database: Database) -> None:
    machine = Machine()
    machine.clock().look(database)
    machine.reboot(off_s=AWAY_S - HOUR)
    assert not machine.clock().look(database).why


def test_what_went_evenly_for_a_day_is_believed_also_by_a_node_that_is_restarted_every_night(
    database: Database,
) -> None:
    """Its clock had been years ahead, and nobody noticed until it was set right while nothing ran."""
    machine = Machine(at=Machine().at + 5 * YEAR)
    machine.clock().look(database)
    machine.reboot()
    machine.at -= 5 * YEAR
    for hours in range(24):
        if hours % 8 == 0:
            machine.reboot()
            clock = machine.clock()
        assert clock.look(database).why
        machine.live(HOUR)
    assert not clock.look(database).why
    machine.reboot()
    assert not machine.clock().look(database).why


def test_a_clock_that_jumps_every_hour_is_never_settled_for(database: Database) -> None:
    machine = Machine()
    clock = machine.clock()
    clock.look(database)
    for _ in range(50):
        machine.live(HOUR)
        machine.at += HOUR
        assert clock.look(database).why


def test_the_newest_record_must_not_lie_in_the_future(database: Database) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.at -= BEHIND_S + 10
    clock.look(database)
    with database.begin() as c:
        ledger.append(c, "received", actor="somebody else's clock")
    verdict = clock.look(database)
    assert verdict.offset_s == pytest.approx(-BEHIND_S - 10, abs=5)
    assert "before the newest record of the ledger" in verdict.why
    machine.live(20)
    assert not clock.look(database).why


def test_a_store_without_the_setting_is_held_against_its_newest_record(database: Database) -> None:
    with database.begin() as c:
        ledger.append(c, "received", actor="an older cxrnode")
    machine = Machine()
    machine.at -= HOUR
    clock = machine.clock()
    assert clock.look(database).why
    with database.begin() as c:
        ledger.append(c, "configuration_loaded", actor="node")  # whatever it is stamped with
    assert machine.clock().look(database).why


def test_two_hosts_whose_clocks_differ_put_two_records_and_not_two_a_minute(database: Database) -> None:
    right, wrong = Machine(boot="a"), Machine(boot="b")
    wrong.at += HOUR
    clocks = [right.clock("a"), wrong.clock("b")]
    whys = []
    for _ in range(10):
        whys = [clock.look(database).why for clock in clocks]
        right.live(61)
        wrong.live(61)
    assert whys[0]
    assert not whys[1]
    with database.begin() as c:
        assert kinds(c) == ["clock_doubted"]


# --- elapsed --------------------------------------------------------------------------------------------------------


def test_elapsed_is_the_time_that_the_node_worked(database: Database) -> None:
    machine = Machine()
    clock = machine.clock()
    begun = clock.look(database).elapsed
    for _ in range(100):
        machine.live(HOUR)
        clock.look(database)
    assert clock.look(database).elapsed - begun == pytest.approx(100 * HOUR)
    for _ in range(10):  # each night the process, each second night the machine
        machine.live(600)
        machine.reboot(off_s=600)
        clock = machine.clock()
        clock.look(database)
        machine.live(HOUR)
        clock.look(database)
    assert clock.look(database).elapsed - begun == pytest.approx(100 * HOUR + 10 * (HOUR + 1200))


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR, 30 * YEAR, -30 * YEAR])
@pytest.mark.parametrize("restart", ["", "process", "machine"])
def test_no_jump_adds_more_to_it_than_two_hours_and_none_takes_from_it(
    database: Database, jump_s: float, restart: str
) -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.look(database).elapsed
    machine.at += jump_s
    if restart == "machine":
        machine.reboot()
    if restart:
        clock = machine.clock()
    assert 0 <= clock.look(database).elapsed - before <= (2 * HOUR if restart else 0)


def test_two_processes_count_the_same_time_once(database: Database) -> None:
    machine = Machine()
    clocks: list[Clock] = [machine.clock(), machine.clock()]
    begun = [clock.look(database) for clock in clocks][-1].elapsed
    for _ in range(60):
        machine.live(120)
        for clock in clocks:
            clock.look(database)
    assert clocks[0].look(database).elapsed - begun == pytest.approx(2 * HOUR)
