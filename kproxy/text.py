"""Clean foreign text for display: one line, no control characters, limited length, no secrets.

Names, annotations, files, variables, answers and output of tools may contain any characters. In a terminal or
a log, an escape sequence changes the display, a line separator forges a line, and a change of writing
direction hides text (CVE-2021-42574). All such text passes through `clean` before it leaves the process: log
lines, /status, output of commands, Events, labels of metrics.
"""

import re

LONGEST = 2048
"""Default limit of one value, in characters."""

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

REDACTED = "(redacted)"

_SECRETS = (
    # The value of an Authorization header, in any notation.
    (re.compile(r"""(?i)(\bauthorization\b['"]?\s*[:=]\s*(?:b?['"])?)[^'",}\]]+"""), r"\1" + REDACTED),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{16,}"), r"\1" + REDACTED),
    # A JSON Web Token (RFC 7519), as service accounts have them.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"), REDACTED),
    # The user and password of a URL (RFC 3986, 3.2.1).
    (re.compile(r"(?<=://)[^/?#\s@'\"]+@"), REDACTED + "@"),
)
_HINTS = ("authorization", "bearer", "eyj", "@")


def clean(text: str, limit: int = LONGEST, *, keep: str = "") -> str:
    """Return the text without secrets, unprintable characters escaped as in Python, cut after `limit`.

    Printable is as in str.isprintable: no control or format character, no separator but the space, and no
    surrogate. Characters in `keep` are not escaped. A clean text is returned unchanged.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c in keep else _escape(c) for c in shown)
    shown = redact(shown)
    if len(text) <= limit and len(shown) <= limit:
        return shown
    note = f"... ({len(text)} characters)"
    return shown[: max(0, limit - len(note))] + note


def redact(text: str) -> str:
    """Return the text with everything that looks like a token or a password removed.

    This is a second safeguard: known secrets are never put into messages.
    """
    lower = text.lower()
    if not any(hint in lower for hint in _HINTS):
        return text
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean_lines(text: str, limit: int = LONGEST) -> str:
    """As `clean`, for text of several lines; the limit applies to each line."""
    return "\n".join(clean(line, limit) for line in text.split("\n"))


def clean_all(value: object, limit: int = LONGEST) -> object:
    """As `clean`, for every text within plain values, mappings and lists that will be encoded as JSON.

    Line breaks stay, because JSON escapes them.
    """
    if isinstance(value, str):
        return clean(value, limit, keep="\n")
    if isinstance(value, dict):
        return {clean_all(key, limit): clean_all(each, limit) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_all(each, limit) for each in value]
    return value


def _escape(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


class Joined(tuple[str, ...]):
    """Texts that a log line shows joined by semicolons, not as Python prints a list."""

    __slots__ = ()

    def __str__(self) -> str:
        return "; ".join(self)
