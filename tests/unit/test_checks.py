"""Checks of which some hang: the answer comes in time, says which one, and there is never a second thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cxrnode.checks import Asked, Checks

WITHIN_S = 0.3


class Hanging:
    """Hangs until it is released, every time."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked = 0

    def __call__(self) -> str | None:
        self.asked += 1
        self.over.wait(20)
        return None


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    check = Hanging()
    yield check
    check.over.set()


def threads() -> int:
    return sum(thread.name == "checks" for thread in threading.enumerate())


def test_what_is_not_well_is_said_with_its_reason() -> None:
    asked = Asked({"reasons": {"a": lambda: None, "b": lambda: "no room"}, "warnings": {"c": lambda: "old"}})
    assert asked() == {"reasons": {"b": "no room"}, "warnings": {"c": "old"}}


def test_one_that_raises_is_not_well_and_its_words_are_kept_back() -> None:
    def check() -> str | None:
        raise ValueError("password")

    assert Asked({"reasons": {"a": check}})() == {"reasons": {"a": "the check failed: ValueError"}}


def test_what_was_asked_before_the_one_that_hangs_is_said_and_what_comes_after_it_is_not(hanging: Hanging) -> None:
    reasons: Checks = {"a": lambda: "no room", "b": hanging, "c": lambda: "not asked"}
    found = Asked({"reasons": reasons, "warnings": {}}, within_s=WITHIN_S)()
    assert found == {"reasons": {"a": "no room", "b": "no answer for 0 s"}, "warnings": {}}


def test_many_who_ask_while_one_hangs_all_get_their_answer_from_one_thread(hanging: Hanging) -> None:
    asked = Asked({"reasons": {"a": hanging}}, within_s=WITHIN_S)
    began = time.monotonic()
    with ThreadPoolExecutor(20) as peers:
        answers = list(peers.map(lambda _: asked(), range(100)))
    assert {tuple(answer["reasons"]) for answer in answers} == {("a",)}
    assert hanging.asked == 1
    assert threads() == 1
    assert time.monotonic() - began < 100 * WITHIN_S / 4  # those that come late wait for nothing


def test_when_it_no_longer_hangs_the_next_answer_is_fresh(hanging: Hanging) -> None:
    asked = Asked({"reasons": {"a": hanging}}, within_s=WITHIN_S)
    assert asked()["reasons"]
    hanging.over.set()
    deadline = time.monotonic() + 20
    while asked()["reasons"]:  # its thread still ends
        assert time.monotonic() < deadline


def test_an_answer_never_tells_of_a_time_before_the_question() -> None:
    seen, entered, go_on = ["old"], threading.Event(), threading.Event()

    def check() -> str | None:
        said = seen[-1]
        entered.set()
        go_on.wait(20)
        return said

    asked = Asked({"reasons": {"a": check}}, within_s=20)
    with ThreadPoolExecutor(2) as peers:
        first = peers.submit(asked)
        assert entered.wait(20)
        seen.append("new")
        second = peers.submit(asked)
        time.sleep(0.05)  # it waits for the first round
        go_on.set()
        assert first.result()["reasons"] == {"a": "old"}
        assert second.result()["reasons"] == {"a": "new"}
