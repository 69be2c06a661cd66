"""Use of python-iptables, which is optional and passes structs to C code: it may crash.

So its first use is in a separate process.
"""

import importlib.util
import sys

from kproxy.kernel.processes import ProcessError, Runner


class PythonIptablesError(Exception):
    """python-iptables is not installed or failed; the message says why."""


def is_installed() -> bool:
    """Whether the package is installed; libraries that it loads may still be missing."""
    return importlib.util.find_spec("iptc") is not None


def run_apart(module: str, *arguments: str, seconds: float = 60.0, runner: Runner | None = None) -> bytes:
    """Return the output of `python -m MODULE ARGUMENTS`; `module` is one of kproxy that uses python-iptables.

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
    """Return the last line of stderr."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
