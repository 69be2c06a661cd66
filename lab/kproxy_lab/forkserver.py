"""Start kproxy by forking a process that has imported it already.

In a user-mode kernel a page fault costs hundreds of times as much as elsewhere, and page faults dominate a
start of Python that imports all of kproxy: it takes many seconds; a fork of a process that has done so takes
one. `python -m kproxy_lab.forkserver DESCRIPTOR` is that process; it listens at a Unix socket that the
environment variable KPROXY_PRELOADED names. Where that is set, `Process` (forked.py) asks there for what
`python -m kproxy ...` would be: the same modules with the same arguments, environment, working directory,
standard streams and network namespace. Only its parent and `/proc/PID/cmdline` are others, and what Python
reads from the environment before it begins (PYTHONPATH, PYTHONHASHSEED, ...) is the preloaded process's.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import netns

from kproxy_lab.forked import COMMAND, SOCKET, Child, Process, available, run

__all__ = ["COMMAND", "SOCKET", "Child", "Process", "available", "run", "serving"]

_PACKAGES: Final = ("kproxy.agent", "kproxy.backends", "kproxy.kernel", "kproxy.plan", "kproxy.sources")
_MODULES: Final = (
    *("kproxy.cli.main", "prometheus_client", "pyroute2", "urllib3"),
    *("kubernetes.client", "kubernetes.config.incluster_config"),
)
"""With the packages above, all modules that `kproxy run` imports, lazily imported ones included."""

_LONGEST: Final = 200_000
"""Bytes of a request: less than what a Unix socket sends at once (net.core.wmem_default)."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A process to fork; `files` are its standard streams and its network namespace."""

    arguments: list[str]
    environment: dict[str, str]
    directory: str
    files: list[int]


@contextlib.contextmanager
def serving(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the preloaded process; it listens at `path` at once and answers when it has imported everything."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        argv = [sys.executable, "-m", "kproxy_lab.forkserver", str(number)]
        # Nothing of what this process prints into may be kept open by one that outlives it.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[number]
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        path.unlink()


def _preload() -> None:
    for name in _PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    for name in _MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection would write to every page and so copy it


def _serve(listener: socket.socket) -> _Request:
    """Fork a child for every request; returns in the children alone."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    _report_exit(key.fd, *key.data)
                    continue
                client, _ = listener.accept()
                request = _receive(client)
                pid = os.fork()
                if pid == 0:
                    return request
                for number in request.files:
                    os.close(number)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, client))
                _reply(client, pid)


def _receive(client: socket.socket) -> _Request:
    data, files, _, _ = socket.recv_fds(client, _LONGEST, 4)
    return _Request(**json.loads(data), files=files)


def _report_exit(descriptor: int, pid: int, client: socket.socket) -> None:
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    with client:
        _reply(client, status)


def _reply(client: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
        client.send(b"%d" % number)


def _become(request: _Request) -> None:
    """Set up this process as `exec` would: streams, namespace, directory, environment, arguments."""
    netns.setns(request.files[3])
    for number in range(3):
        os.dup2(request.files[number], number)
    os.closerange(3, max(int(each.name) for each in Path("/proc/self/fd").iterdir()) + 1)
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv = ["kproxy", *request.arguments]
    sys.path[0] = request.directory


def _end(status: int) -> None:
    """Exit as Python does, but without the teardown of modules, which would write to every page."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status & 0xFF)


def main() -> None:
    """Import everything, then serve; in a child, run kproxy."""
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        _preload()
        request = _serve(listener)
    _become(request)
    try:
        runpy.run_module("kproxy", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        _end(end.code or 0)


if __name__ == "__main__":
    main()
