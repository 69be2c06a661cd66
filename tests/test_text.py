"""Foreign text in everything that is shown: one line, bounded, and nothing secret."""

from __future__ import annotations

import io
import json
import logging
import sys
from contextlib import redirect_stderr
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from kproxy import logs
from kproxy.addresses import Family
from kproxy.modes.findings import warning
from kproxy.modes.registry import mode_registry
from kproxy.state.problems import Problem
from kproxy.telemetry import series
from kproxy.telemetry.events import NOTE_MAX, EventRecorder, Notice, Reason
from kproxy.telemetry.exposition import Exposition
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.problem_log import LINES, ProblemLog
from kproxy.telemetry.status import Failure, FamilyStatus, Pending, QuarantinedService, Repair, Status, encode
from kproxy.telemetry.status_screen import screen
from kproxy.text import LONGEST, Joined, clean
from tests import builders

BAD = "a\x1b[31m\r\n\x00\x7f\x85\u2028\u2029\u202e\u2066\u200b\ufeff\ud800\U000e0001z"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"


def _lines(output: str) -> list[str]:
    """Lines as the strictest reader counts them."""
    return output.splitlines()


def test_what_is_not_printable_is_escaped() -> None:
    assert clean(BAD) == (r"a\x1b[31m\r\n\x00\x7f\x85\u2028\u2029\u202e\u2066\u200b\ufeff\ud800\U000e0001z")
    assert clean("plain, Grüße 例 ()") == "plain, Grüße 例 ()"


@given(st.text(st.characters(), max_size=300), st.integers(40, 400))
def test_it_is_printable_bounded_and_stays_so(text: str, limit: int) -> None:
    shown = clean(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert clean(shown, limit) == shown
    shown.encode()


def test_a_cut_says_how_much_there_was() -> None:
    assert clean("x" * 200_000).endswith("x... (200000 characters)")
    assert len(clean("\u2028" * 200_000)) <= LONGEST


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {JWT}", "Bearer (redacted)"),
        (f"token {JWT}: expired", "token (redacted): expired"),
        ("{'authorization': 'Basic dXNlcjpwYXNz', 'a': 1}", "{'authorization': '(redacted)', 'a': 1}"),
        ("Authorization: Bearer abc.def", "Authorization: (redacted)"),
        ("https://admin:pass@host:6443/x", "https://(redacted)@host:6443/x"),
        ("no route to http://10.0.0.1:8080/a@b", "no route to http://10.0.0.1:8080/a@b"),
        ("a bearer token is not sent", "a bearer token is not sent"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, shown: str) -> None:
    assert clean(text) == shown


def _logged(form: str = "text", /, **fields: Any) -> str:
    before = structlog.get_config()
    out = io.StringIO()
    try:
        with redirect_stderr(out):
            logs.configure(form=form)
            structlog.stdlib.get_logger("t").warning("an_event", **fields)
    finally:
        structlog.configure(**before)
    return out.getvalue()


@pytest.mark.parametrize("value", [BAD, [BAD], {"k": BAD}, ValueError(BAD), BAD.encode(errors="replace")])
def test_a_log_line_is_one_line(value: object) -> None:
    (line,) = _lines(_logged(value=value, other="b"))
    assert line.isprintable()
    assert line.endswith("other=b")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_line_is_bounded(form: str) -> None:
    huge = "\u2028" * 200_000
    assert len(_logged(form, value=huge, list=[huge] * 5, error=ValueError(huge))) < 20_000


@pytest.mark.parametrize(
    "value", [BAD, [BAD], {"k": BAD}, ValueError(BAD), f"Bearer {JWT}", 'x", "level": "y']
)
def test_a_json_log_line_is_one_object_whose_values_are_cleaned_as_in_text(value: object) -> None:
    (line,) = _lines(_logged("json", value=value, other="b", number=7, flag=True, nothing=None, part=1.5))
    assert line.isascii()
    assert line.isprintable()
    told = json.loads(line)
    assert list(told)[:3] == ["timestamp", "level", "event"]
    datetime.fromisoformat(told.pop("timestamp"))
    assert told == {
        "level": "warning",
        "event": "an_event",
        "value": clean(str(value), keep="\n"),
        "other": "b",
        "number": 7,
        "flag": True,
        "nothing": None,
        "part": 1.5,
    }


def test_a_json_log_line_has_no_number_that_json_has_not() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = _lines(_logged("json", wait=float("inf"), ratio=float("nan")))
    told = json.loads(line, parse_constant=refuse)
    assert (told["wait"], told["ratio"]) == ("inf", "nan")


def test_a_traceback_in_json_is_one_value_without_a_token() -> None:
    try:
        raise ValueError(f"Bearer {JWT}")
    except ValueError:
        (line,) = _lines(_logged("json", exc_info=sys.exc_info()))
    told = json.loads(line)
    assert "ValueError" in told["exception"]
    assert JWT not in line


def test_a_value_cannot_pretend_to_be_further_fields() -> None:
    (line,) = _lines(_logged(value='x" level=error event="y\\', other="b"))
    assert r'value="x\" level=error event=\"y\\" other=b' in line


def test_a_traceback_is_one_line_without_a_token() -> None:
    def fail() -> None:
        raise ValueError(f"Invalid header value b'Bearer {JWT}'\u2028{BAD}")

    try:
        fail()
    except ValueError:
        told = _logged(exc_info=sys.exc_info())
    (line,) = _lines(told)
    assert "in fail" in line
    assert JWT not in line


def test_what_libraries_log_is_cleaned_too() -> None:
    before, handlers = structlog.get_config(), list(logging.getLogger().handlers)
    bad = BAD.replace("\ud800", "")  # pytest itself keeps what is logged, and cannot send a surrogate
    out = io.StringIO()
    try:
        with redirect_stderr(out):
            logs.configure()
            logging.getLogger("urllib3.connectionpool").warning("Failed to parse %s", bad)
            logging.error("exec: process returned 1. the token is %s", "s3cret")  # noqa: LOG015
            logs.configure()
            logging.getLogger("x").warning("once")
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers[:] = handlers
    lines = _lines(out.getvalue())
    assert all(line.isprintable() for line in lines)
    assert ["event=library_message" in line for line in lines] == [True] * 3
    assert "s3cret" not in out.getvalue()


def test_a_problem_is_printable_and_bounded() -> None:
    problem = Problem(f"Service {BAD}", BAD * 100, BAD * 100, BAD * 1000)
    assert str(problem).isprintable()
    assert len(str(problem)) < 2000


def test_a_huge_annotation_is_a_short_line() -> None:
    text = "{" + ", ".join(f'"{BAD[:3]}\u202e{"x" * 50}{n}": 1' for n in range(3000)) + "}"
    document = builders.service(annotations={"kproxy.io/weights": text, "kproxy.io/scheduler": text})
    plan = builders.plan_of(document)
    assert plan.problems
    assert sum(len(str(problem)) for problem in plan.problems) < 3000
    assert all(str(problem).isprintable() for problem in plan.problems)


def test_many_defects_of_one_service_are_a_handful_of_lines() -> None:
    problems = tuple(
        Problem("Service ns/a", f"spec.externalIPs[{n}]", '"x"', "no address") for n in range(5000)
    )
    with structlog.testing.capture_logs() as told:
        log = ProblemLog()
        log.update({"ns/a": problems})
        log.update({"ns/a": problems})
    assert len(told) == LINES + 1
    assert told[-1]["number"] == 5000 - LINES


def _status() -> Status:
    now = datetime.now(UTC)
    family = FamilyStatus(
        services=1,
        last_success=now,
        last_failure=Failure(now, BAD * 10_000),
        quarantined=[QuarantinedService(BAD, f"Bearer {JWT}", now)],
        degraded={BAD: BAD},
        drift=Repair(1, 1, now, (BAD,)),
    )
    problem = Problem(BAD, BAD, BAD, BAD)
    return Status(
        version="1",
        node=BAD,
        mode="iptables",
        since=now,
        healthy=True,
        node_eligible=True,
        pending=Pending(0, 0, None),
        families={Family.IPV4: family},
        problems=[problem],
        rejected=[problem],
    )


def test_status_and_its_screen() -> None:
    status = _status()
    encoded = encode(status).decode()
    assert all(line.isprintable() for line in _lines(encoded))
    assert len(encoded) < 20_000
    assert JWT not in encoded
    assert json.loads(encoded)["families"]["IPv4"]["services"] == 1
    text = screen(status, datetime.now(UTC))
    assert all(line.isprintable() for line in _lines(text))
    assert JWT not in text
    assert max(map(len, _lines(text))) < 10_000


class Api:
    """Takes Events."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def uid(self, path: str) -> str:
        return "u"

    def create(self, path: str, body: Any) -> None:
        self.bodies.append(body)

    def patch(self, path: str, body: Any) -> None:
        raise AssertionError


def test_the_note_of_an_event_is_valid_and_short() -> None:
    api = Api()
    recorder = EventRecorder(api, "node-a", Metrics(), (ValueError,))
    recorder.send(Notice(Reason.REFUSED, "ns/a", BAD + "例" * 5000))
    note = api.bodies[0]["note"]
    assert note.isprintable()
    assert len(note.encode()) <= NOTE_MAX


def test_a_label_that_cannot_be_encoded_does_not_cost_the_scrape() -> None:
    metrics = Metrics()
    metrics.add(series.REQUESTS, "200", BAD + "x" * 5000, "GET")
    text = Exposition(metrics, lambda: mode_registry().foreign_metrics("iptables"), ()).text().decode()
    (line,) = [line for line in _lines(text) if line.startswith("rest_client_requests_total{")]
    assert line.isprintable()
    assert len(line) < 1000


def test_a_finding_is_one_line() -> None:
    found = warning(BAD, BAD, f"Bearer {JWT}")
    assert all(text.isprintable() for text in (found.subject, found.found, found.remedy))
    assert JWT not in found.remedy


@pytest.mark.parametrize("form", ["text", "json"])
def test_several_texts_are_joined_by_semicolons(form: str) -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        logs.configure(0, form)
        structlog.get_logger().info("configuration_rejected", problems=Joined(["a: b", "c\x1b"]))
    assert "a: b; c" in written.getvalue()
    assert not {"[", "(", "\x1b"} & set(written.getvalue())
