"""Network namespaces that threads visit and programs run in.

A socket always belongs to the namespace in which it was created, whichever thread uses it. So one thread
of the lab moves from namespace to namespace and only creates sockets there; no request needs a process,
and the main thread never leaves its own namespace.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final, ParamSpec, TypeVar

from pyroute2 import netns

from kproxy_lab import forkserver
from kproxy_lab.forked import Child
from kproxy_lab.lab.cgroups import join, visiting
from kproxy_lab.lab.owners import is_orphan

P = ParamSpec("P")
T = TypeVar("T")

RUN_DIR: Final = Path(netns.NETNS_RUN_DIR)
CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
TERMINATE_SECONDS: Final = 5.0


def sweep() -> list[str]:
    """Remove the namespaces of labs whose process is gone; returns the names of those removed.

    Programs that such a lab left running inside get SIGTERM: no other process can reach them. A namespace
    that cannot be removed stays for a later sweep: names are unique, so it does no harm.
    """
    orphans = [name for name in sorted(netns.listnetns()) if is_orphan(name)]
    for pid in _processes_in(orphans):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
    removed = []
    for name in orphans:
        with contextlib.suppress(OSError):  # busy: mounted elsewhere in a way that this process cannot undo
            _remove(name)
            removed.append(name)
    return removed


def _processes_in(names: Sequence[str]) -> list[int]:
    """The processes that run in these namespaces, as far as /proc shows them."""
    wanted = set()
    for name in names:
        with contextlib.suppress(OSError):
            found = (RUN_DIR / name).stat()
            wanted.add((found.st_dev, found.st_ino))
    pids = []
    for entry in Path("/proc").iterdir() if wanted else ():
        with contextlib.suppress(OSError):  # ended, or hidden
            if entry.name.isdigit():
                found = (entry / "ns" / "net").stat()
                if (found.st_dev, found.st_ino) in wanted:
                    pids.append(int(entry.name))
    return pids


def remove_prefixed(prefix: str) -> None:
    """Remove all namespaces whose names begin with `prefix`."""
    for name in netns.listnetns():
        if name.startswith(prefix):
            _remove(name)


class NamespaceThread:
    """The one thread that enters namespaces on behalf of all others; it may be in a cgroup of its own."""

    def __init__(self, cgroup: Path | None = None) -> None:
        """Raises OSError if the thread cannot join the cgroup."""
        self.cgroup = cgroup
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lab-namespaces")
        if cgroup is not None:
            self.submit(join, cgroup).result()

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `function` on the thread, in whatever namespace it happens to be."""
        return self._executor.submit(function, *args, **kwargs)

    def close(self) -> None:
        """End the thread after its queued work."""
        self._executor.shutdown(wait=True)


class Namespace:
    """One named network namespace under `/run/netns`, created at once and removed by `close()`.

    Its sockets and processes belong to the cgroup of its thread, if that has one.
    """

    def __init__(self, name: str, thread: NamespaceThread) -> None:
        self.name = name
        self.path = RUN_DIR / name
        self._thread = thread
        self._processes: list[Child] = []
        thread.submit(_create, name).result()
        self._fd = os.open(self.path, os.O_RDONLY)

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread into the namespace and its cgroup for the length of the block.

        Raises RuntimeError in the main thread, whose namespace is the process's own.
        """
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("the main thread keeps its namespace; use call() or another thread")
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            with visiting(self._thread.cgroup):
                netns.setns(self._fd)
                try:
                    yield
                finally:
                    netns.setns(home)
        finally:
            os.close(home)

    def visit(self) -> None:
        """Move the calling thread into the namespace for good; for the `NamespaceThread`'s own work."""
        netns.setns(self._fd)

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `function` inside the namespace, on the lab's namespace thread."""

        def inside() -> T:
            self.visit()
            return function(*args, **kwargs)

        return self._thread.submit(inside)

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` inside the namespace and wait for what it returns or raises."""
        return self.submit(function, *args, **kwargs).result()

    def open_socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A non-blocking socket that lives in the namespace and can be used from any thread."""
        return self.call(new_socket, family, kind, proto)

    def listen(self, host: str, port: int = 0, *, backlog: int = 1024) -> socket.socket:
        """A listening TCP socket inside the namespace, to hand to a server that runs outside it.

        The caller owns it; `getsockname()` returns the port when `port` was 0. Raises OSError.
        """
        return self.call(_listen, host, port, backlog)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read, or first set, a `net.` sysctl as this namespace sees it (dotted name)."""
        path = Path("/proc/sys", *name.split("."))
        if value is not None:
            self.call(path.write_text, str(value))
        return self.call(path.read_text).strip()

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return `argv` prefixed so that it runs inside the namespace, in one process (nsenter execs it)."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside the namespace to its end, with its output captured as text.

        Raises subprocess.CalledProcessError (with the program's stderr as a note) when `check` is set
        and it fails, and subprocess.TimeoutExpired after `timeout` seconds.
        """
        if stdin is None and self._preloaded(argv):
            done = forkserver.run(argv, self.path, timeout=timeout, env=env)
        else:
            done = self._run(argv, stdin, timeout, env)
        if check and done.returncode != 0:
            error = subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> Child:
        """Start a program inside the namespace; what still runs when the lab closes is terminated."""
        process: Child
        if self._preloaded(argv):
            process = forkserver.Process(
                argv, self.path, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
            )
        else:
            process = self._start(
                lambda: subprocess.Popen(
                    self.command(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
                )
            )
        self._processes.append(process)
        return process

    def _preloaded(self, argv: Sequence[str]) -> bool:
        """Return whether the preloaded process can fork this program; its forks are in its own cgroup."""
        return self._thread.cgroup is None and forkserver.available(argv)

    def _start(self, start: Callable[[], T]) -> T:
        """Start a process: a child begins in the cgroup of the thread that makes it."""
        return start() if self._thread.cgroup is None else self._thread.submit(start).result()

    def _run(
        self, argv: Sequence[str], stdin: str | None, timeout: float, env: Mapping[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        process = self._start(
            lambda: subprocess.Popen(
                self.command(argv),
                stdin=None if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
            )
        )
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def close(self) -> None:
        """End the programs started here and remove the name; the kernel drops the rest with its last user."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _remove(self.name)


def new_socket(family: int, kind: int, proto: int = 0) -> socket.socket:
    """A non-blocking socket in the calling thread's namespace."""
    made = socket.socket(family, kind, proto)
    made.settimeout(0)
    return made


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET6 for a textual IPv6 address, else AF_INET."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _create(name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"unshare(CLONE_NEWNET): {os.strerror(errno)}")
    netns.attach(name, "thread-self")


def _remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process may sweep at the same time
        netns.remove(name)


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    family = family_of(host)
    listener = new_socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
