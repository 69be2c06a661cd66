"""Read and set kernel parameters through /proc/sys.

Containers often have /proc/sys read-only with the values already right, so a value is read first and written
only if it differs.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/proc/sys")


class SysctlError(Exception):
    """A kernel parameter could not be read or set; `name` is the parameter, `reason` the cause."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"sysctl {name}: {reason}")
        self.name = name
        self.reason = reason


def path(name: str, root: Path = _ROOT) -> Path:
    """The file of a parameter named as in /proc/sys, e.g. net/ipv4/conf/all/route_localnet.

    Slashes only: an interface name may contain dots.  Raises ValueError for a name outside /proc/sys.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        msg = f"not a sysctl name: {name!r}"
        raise ValueError(msg)
    return root.joinpath(*parts)


def read(name: str, root: Path = _ROOT) -> str:
    """The parameter's value without surrounding blanks.  Raises SysctlError."""
    try:
        return path(name, root).read_text(encoding="ascii").strip()
    except OSError as error:
        raise SysctlError(name, error.strerror or str(error)) from error


def ensure(name: str, value: int | str, root: Path = _ROOT) -> bool:
    """Set the parameter to `value` if it differs; True if it was written.

    Raises SysctlError if it cannot be read, cannot be written, or the kernel keeps another value.
    """
    wanted = str(value)
    current = read(name, root)
    if current == wanted:
        return False
    try:
        path(name, root).write_text(wanted, encoding="ascii")
    except OSError as error:
        reason = f"is {current}, cannot be set to {wanted}: {error.strerror or error}"
        raise SysctlError(name, reason) from error
    if (kept := read(name, root)) != wanted:
        raise SysctlError(name, f"was set to {wanted}, the kernel keeps {kept}")
    return True
