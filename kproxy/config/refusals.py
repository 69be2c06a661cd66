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


class RefusedSetting(msgspec.Struct, frozen=True, rename="camel", order=True):
    """A setting of the file that this node cannot obey, by its path; the value before it stays."""

    at: datetime
    setting: str
    reason: str


class SettingRefused(Exception):
    """The new value at `path` of kproxy's own document cannot be used on this node; `kept` stays in force."""

    def __init__(self, path: str, kept: object, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.kept = kept
        self.reason = reason
