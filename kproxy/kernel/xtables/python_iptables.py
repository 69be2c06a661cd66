"""Using python-iptables, which is optional and loads C that is handed structs by Python: it may crash.

So what it is asked for first, or once and for all, is asked in a process of its own.
"""

import importlib.util
import sys

from kproxy.kernel.processes import ProcessError, Runner


class PythonIptablesError(Exception):
    """It is not there or does not do what it is asked; the message says why."""


def is_installed() -> bool:
    """Whether it can be imported; what it loads then may still be missing."""
    return importlib.util.find_spec("iptc") is not None


def run_apart(module: str, *arguments: str, seconds: float = 60.0, runner: Runner | None = None) -> bytes:
    """What `python -m MODULE ARGUMENTS` prints, `module` being one of ours that uses python-iptables.

    Raises PythonIptablesError.
    """
    try:
        argv = [sys.executable, "-m", module, *arguments]
        status, printed, stderr = (runner or Runner()).run(argv, timeout=seconds)
    except ProcessError as error:
        raise PythonIptablesError(error.message) from error
    if status:
        raise PythonIptablesError(f"python-iptables ended with status {status}: {last_line(stderr)}")
    return printed


def last_line(stderr: bytes) -> str:
    """What a program that failed said last."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
