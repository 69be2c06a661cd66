"""`kproxy changes` prints what the agent knows, and goes on with what is new."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from click.testing import CliRunner

from kproxy.addresses import Family
from kproxy.cli.main import main
from kproxy.inspect.agent_client import AgentUnavailable
from kproxy.inspect.changes import PATH, PAUSE, Change, ChangeList, follow
from kproxy.telemetry.http.server import Answer, HttpServer

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def change(number: int) -> Change:
    arrived, taken, planned, applied = (AT + timedelta(milliseconds=each) for each in (0, 2, 5, 21))
    return Change(number, "shop/cart", Family.IPV4, arrived, taken, planned, applied, ("10.0.0.1:80",))


@contextmanager
def agent(*changes: Change) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    def reply(query: str) -> Answer:
        asked.append(query)
        return Answer(msgspec.json.encode(ChangeList(len(changes), changes)))

    server = HttpServer("test", "127.0.0.1:0", {}, queries={PATH: reply})
    server.start()
    try:
        yield f"127.0.0.1:{server.port}", asked
    finally:
        server.stop()


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["changes", *arguments], prog_name="kproxy")
    return result.exit_code, result.stdout, result.stderr


def test_each_change_is_a_line_of_text_or_json() -> None:
    with agent(change(1), change(2)) as (address, asked):
        status, text, _ = run("--address", address, "shop/cart")
        as_json = run("--address", address, "-o", "json")[1]
    assert status == 0
    assert len(text.splitlines()) == 2
    assert "shop/cart IPv4  +10.0.0.1:80  arrived" in text
    assert "planned +5 ms, in the kernel +21 ms" in text
    assert [msgspec.json.decode(line, type=Change) for line in as_json.splitlines()] == [change(1), change(2)]
    assert asked == ["after=0&service=shop%2Fcart", "after=0"]


@pytest.mark.parametrize("arguments", [("cart",), ("a/b/c",), ("--address", "127.0.0.1:9")])
def test_errors_exit_with_one(arguments: tuple[str, ...]) -> None:
    status, text, errors = run(*arguments)
    assert (status, text) == (1, "")
    assert "Error: " in errors


def test_following_goes_on_after_the_last_change_and_over_a_restart_of_the_agent() -> None:
    asked: list[int] = []
    pauses: list[float] = []
    answers = [ChangeList(2, (change(1), change(2))), ChangeList(3, (change(3),)), ChangeList(1, ())]

    def ask(address: str, service: str | None, after: int) -> ChangeList:
        assert (address, service) == ("node:1", None)
        asked.append(after)
        if answers:
            return answers.pop(0)
        if after == 0:
            return ChangeList(1, (change(1),))
        raise AgentUnavailable("gone")

    coming = follow("node:1", None, ask, pauses.append)
    assert [next(coming).number for _ in range(4)] == [1, 2, 3, 1]
    with pytest.raises(AgentUnavailable):
        next(coming)
    assert asked == [0, 2, 3, 0, 1]
    assert pauses == [PAUSE] * 3
