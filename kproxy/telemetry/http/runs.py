"""Answers that take long: each is computed on a thread of its own, at most one per kind at a time.

Clients that request the same during a run share the next run. So a scrape of a large node costs one
thread, however many clients ask.
"""

import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus

import structlog

from kproxy.telemetry.http.connection import Connection, Payload, Work
from kproxy.telemetry.http.message import Answer, plain_error

log = structlog.stdlib.get_logger(__name__)


class _Run:
    """Work in progress of one kind: the connections that get its answer, and those that asked later."""

    def __init__(self, work: Work, asking: dict[Connection, None]) -> None:
        self.work = work
        self.asking = asking
        self.waiting: dict[Connection, None] = {}


class Runs:
    """Used by the thread of an HTTP loop. `call` passes a function to that thread; `name` is for the log.

    `answer` is called there with each connection, the answer, and the body that all connections share.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Callable[[], None]], None],
        answer: Callable[[Connection, Answer, Payload], None],
    ) -> None:
        self._name = name
        self._call = call
        self._answer = answer
        self._runs: dict[str, _Run] = {}

    def ask(self, work: Work, connection: Connection) -> None:
        """Answer a connection once the work is done; a run that has begun already does not count."""
        run = self._runs.get(work.kind)
        if run is None:
            self._start(work, {connection: None})
        else:
            connection.work = run.waiting
            run.waiting[connection] = None

    def _start(self, work: Work, asking: dict[Connection, None]) -> None:
        run = self._runs[work.kind] = _Run(work, asking)
        for connection in asking:
            connection.work = asking

        def make() -> None:
            try:
                answer = work.make()
            except Exception:
                log.exception("http_answer_failed", server=self._name, path=work.kind)
                answer = plain_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            self._call(partial(self._finish, run, answer))

        try:
            threading.Thread(target=make, name=f"{self._name} {work.kind}", daemon=True).start()
        except RuntimeError as error:  # the limit of threads is reached
            log.warning("http_answer_failed", server=self._name, path=work.kind, reason=str(error))
            self._finish(run, plain_error(HTTPStatus.SERVICE_UNAVAILABLE))

    def _finish(self, run: _Run, answer: Answer) -> None:
        del self._runs[run.work.kind]
        payload = Payload(answer.body)
        for connection in list(run.asking):
            if not connection.closed:
                connection.work = None
                self._answer(connection, answer, payload)
        if run.waiting:
            self._start(run.work, run.waiting)
