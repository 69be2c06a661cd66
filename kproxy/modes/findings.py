"""The result of a check: one finding for each subject that was probed or inspected."""

import enum
from collections.abc import Iterator

import msgspec

from kproxy.text import clean


class Level(enum.StrEnum):
    """The severity of a finding. Only an ERROR keeps kproxy from working."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """A subject, the state found, and a remedy in one sentence; an OK finding needs no remedy."""

    level: Level
    subject: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Clean the texts: parts of them come from servers, tools and other programs."""
        for name in ("subject", "found", "remedy"):
            text: str = getattr(self, name)
            if (fit := clean(text)) != text:
                msgspec.structs.force_setattr(self, name, fit)


class ProbeResult(msgspec.Struct, frozen=True):
    """One probe; `refusal` is the error text of the kernel or a program, "" if it worked."""

    subject: str
    refusal: str = ""


class Report(msgspec.Struct, frozen=True):
    """All findings, in the order of display."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether kproxy can work on this node."""
        return all(finding.level is not Level.ERROR for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """Yield a line for each finding, followed by a line for its remedy."""
        for finding in self.findings:
            yield f"{finding.level:<9} {finding.subject}: {finding.found}"
            if finding.remedy:
                yield f"{'':<9} remedy: {finding.remedy}"

    def json(self) -> bytes:
        """{"passed": bool, "findings": [{"level", "subject", "found", "remedy"}]}."""
        return msgspec.json.format(
            msgspec.json.encode({"passed": self.passed, "findings": self.findings}), indent=2
        )


def ok(subject: str, found: str) -> Finding:
    """A finding that needs no action."""
    return Finding(Level.OK, subject, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    """A finding about a restriction or an unexpected effect."""
    return Finding(Level.WARNING, subject, found, remedy)


def failed(subject: str, found: str, remedy: str) -> Finding:
    """A finding that keeps kproxy from working."""
    return Finding(Level.ERROR, subject, found, remedy)
