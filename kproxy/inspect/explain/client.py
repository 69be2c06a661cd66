"""Ask the running agent for what is desired; what the kernel holds is read by the command itself."""

import contextlib
import http.client
from urllib.parse import urlencode

import msgspec

from kproxy.inspect.explain.question import Question, QuestionError
from kproxy.inspect.explain.report import Report

PATH = "/explain"
SECONDS = 10.0
"""The longest time for the answer."""


class AgentUnavailable(Exception):
    """No kproxy answers; the message names the address and the reason."""


def query_of(question: Question) -> str:
    """The question as the query of a URL."""
    return urlencode(
        {"src": question.source, "proto": question.protocol.lower(), "dst": question.destination}
    )


def ask(address: str, question: Question, seconds: float = SECONDS) -> Report:
    """What the kproxy that listens at `host:port` desires. Raises QuestionError, AgentUnavailable."""
    url = f"http://{address}{PATH}"
    try:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=seconds)) as connection:
            connection.request("GET", f"{PATH}?{query_of(question)}")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == http.client.BAD_REQUEST:
                raise QuestionError(body.decode(errors="replace").strip())
            if answer.status != http.client.OK:
                text = body.decode(errors="replace").strip()
                raise AgentUnavailable(f"no answer from {url}: {answer.status} {text or answer.reason}")
            return msgspec.json.decode(body, type=Report)
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise AgentUnavailable(f"no answer from {url}: {error}") from error
