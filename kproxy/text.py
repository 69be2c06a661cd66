"""Foreign text, made fit to be shown: on one line, without control characters, bounded, and without secrets.

Names, annotations, files, variables, answers and what tools print may hold anything. In a terminal or a log,
an escape sequence changes what the next reader sees, a line separator makes up a line of its own, and a
change of writing direction hides what is written (CVE-2021-42574). Every place where such text leaves the
process goes through `clean`: log lines, /status, the screens of commands, Events, labels of metrics.
"""

import re

LONGEST = 2048
"""Characters of one value, unless the place says otherwise."""

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
    """The text with what is not printable escaped as in Python, secrets taken out, and cut after `limit`.

    What is printable is that of str.isprintable, which no control or format character is, no separator but
    the space and no surrogate. `keep` are characters that stay as they are. A clean text stays as it is.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c in keep else _escape(c) for c in shown)
    shown = redact(shown)
    if len(text) <= limit and len(shown) <= limit:
        return shown
    told = f"... ({len(text)} characters)"
    return shown[: max(0, limit - len(told))] + told


def redact(text: str) -> str:
    """The text without what looks like a token or a password.

    A second line of defence: nothing that is known to be secret is put into a message in the first place.
    """
    lower = text.lower()
    if not any(hint in lower for hint in _HINTS):
        return text
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean_lines(text: str, limit: int = LONGEST) -> str:
    """The same for text of several lines, each of which is bounded."""
    return "\n".join(clean(line, limit) for line in text.split("\n"))


def clean_all(value: object, limit: int = LONGEST) -> object:
    """The same for every text within plain values, mappings and lists, that are about to become JSON.

    Line breaks stay, for JSON escapes them itself.
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
