"""The answer of a check: one finding for each thing that was tried or looked at."""

import enum
from collections.abc import Iterator

import msgspec

from kproxy.text import clean


class Level(enum.StrEnum):
    """How much a finding matters. Only an ERROR keeps kproxy from doing its work."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """What was found of a subject, and in one sentence what helps; an OK one needs no remedy."""

    level: Level
    subject: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Much of this is what servers, tools and other programs said."""
        for name in ("subject", "found", "remedy"):
            text: str = getattr(self, name)
            if (fit := clean(text)) != text:
                msgspec.structs.force_setattr(self, name, fit)


class Trial(msgspec.Struct, frozen=True):
    """One thing that was tried; `refusal` is what the kernel or a program answered, "" if it worked."""

    subject: str
    refusal: str = ""


class Report(msgspec.Struct, frozen=True):
    """All findings, in the order in which they are to be read."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether kproxy can do its work here."""
        return all(finding.level is not Level.ERROR for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """A line for each finding, and one below it for its remedy."""
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
    """Nothing to do."""
    return Finding(Level.OK, subject, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    """Something that works less well than it could, or may surprise."""
    return Finding(Level.WARNING, subject, found, remedy)


def failed(subject: str, found: str, remedy: str) -> Finding:
    """Something without which kproxy cannot do its work."""
    return Finding(Level.ERROR, subject, found, remedy)
