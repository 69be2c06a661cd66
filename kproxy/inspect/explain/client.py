"""Ask the running agent for what is desired; what the kernel holds is read by the command itself."""

from urllib.parse import urlencode

from kproxy.inspect.agent_client import AgentRefused, get
from kproxy.inspect.explain.question import Question, QuestionError
from kproxy.inspect.explain.report import Report

PATH = "/explain"


def query_of(question: Question) -> str:
    """The question as the query of a URL."""
    protocol = question.protocol.lower()
    return urlencode({"src": question.source, "proto": protocol, "dst": question.destination})


def ask(address: str, question: Question) -> Report:
    """What the kproxy that listens at `host:port` desires. Raises QuestionError, AgentUnavailable."""
    try:
        return get(address, f"{PATH}?{query_of(question)}", Report)
    except AgentRefused as error:
        raise QuestionError(str(error)) from error
