"""What a reload could not apply, as /status reports it.

These are separate from reload.py, because `kproxy status` reads them and needs nothing else of a reload.
"""

from datetime import datetime

import msgspec


class RefusedMode(msgspec.Struct, frozen=True, rename="camel", order=True):
    """A mode that the file names and that could not start; `kept` stays in use."""

    at: datetime
    mode: str
    kept: str
    reason: str


class RejectedConfiguration(msgspec.Struct, frozen=True, rename="camel", order=True):
    """A rejected configuration file: time, path and every defect. The previous one stays in force."""

    at: datetime
    file: str
    problems: list[str]
