"""A process that ends between any two steps of a publication leaves what the next process can publish.

Every system call that changes something is a step. The process ends by an exception that nothing catches;
then its descriptors are closed, as the kernel does for a process that was killed.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.bpf import links, maps, programs, syscall
from kproxy.kernel.bpf.links import hook_programs
from kproxy.kernel.bpf.types import BpfError, Capacity, Sizes
from tests.support.bpf import SERVICE, answer_from, endpoint, key, reopened, serve, value

pytestmark = pytest.mark.root
V4 = Family.IPV4
LARGER = Sizes(Capacity(200, 1000), Capacity(64, 256), 128)
_MOST_STEPS = 500
_PATIENCE = 10.0


class Killed(BaseException):
    """The end of the process."""


@contextmanager
def ending_at(step: int) -> Iterator[list[str]]:
    """Let the process end before its step of that number; the steps that it took."""
    taken: list[str] = []

    def count(what: str) -> None:
        if len(taken) == step:
            raise Killed
        taken.append(what)

    def call(command: syscall.Command, attributes: syscall.Buffer, size: int) -> int:
        count(command.name)
        return real_call(command, attributes, size)

    real_call = syscall.call
    with pytest.MonkeyPatch.context() as patch:
        for module in (syscall, maps, links, programs):
            patch.setattr(module, "call", call)
        for name in ("mkdir", "rename", "unlink", "rmdir"):
            patch.setattr(Path, name, _counted(name, count))
        yield taken


def _close_since(before: set[int]) -> None:
    """Close what the process that ended has left open."""
    for descriptor in _descriptors() - before:
        os.close(descriptor)


def _descriptors() -> set[int]:
    """The descriptors of this process that are objects of BPF."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            if "bpf" in str(path.readlink()):
                found.add(int(path.name))
        except FileNotFoundError:  # that of the listing
            continue
    return found


def _counted(name: str, count: object) -> object:
    real = getattr(Path, name)

    def method(self: Path, *arguments: object, **named: object) -> object:
        assert callable(count)
        count(f"{name} {self.name}")
        return real(self, *arguments, **named)

    return method


def test_a_first_publication_can_end_anywhere(cgroup: Path, bpffs: Path) -> None:
    with endpoint(V4) as port:
        for step in range(_MOST_STEPS):
            before, ended = _descriptors(), False
            with ending_at(step) as taken:
                table = None
                try:
                    table = reopened(cgroup, bpffs)
                    serve(table, V4, port)
                    table.publish()
                except Killed:
                    ended = True
            if table is not None:
                table.close()
            _close_since(before)
            _next_process_serves(cgroup, bpffs, port, f"ended after {taken[-3:]}")
            if not ended:
                assert "LINK_CREATE" in taken
                return
    pytest.fail("it never came to an end")


@pytest.mark.parametrize("was_known", [True, False], ids=["same process", "after a restart"])
def test_a_growth_can_end_anywhere_and_traffic_flows_all_the_time(
    was_known: bool, cgroup: Path, bpffs: Path
) -> None:
    with endpoint(V4) as port:
        for step in range(_MOST_STEPS):
            before = _descriptors()
            table = reopened(cgroup, bpffs)
            serve(table, V4, port)
            table.publish()
            if not was_known:
                table.close()
                table = reopened(cgroup, bpffs)
            ended = False
            with ending_at(step) as taken:
                try:
                    grown = table.grow(LARGER)
                    serve(grown, V4, port)
                    table.publish(grown)
                except Killed:
                    ended = True
            table.close()
            _close_since(before)
            assert answer_from(SERVICE[V4]) == port, taken[-3:]
            _next_process_serves(cgroup, bpffs, port, f"ended after {taken[-3:]}")
            if not ended:
                assert "LINK_UPDATE" in taken
                return
    pytest.fail("it never came to an end")


def _next_process_serves(cgroup: Path, bpffs: Path, port: int, when: str) -> None:
    try:
        table = reopened(cgroup, bpffs)
        try:
            if table.fresh:
                serve(table, V4, port)
            assert table.frontends(V4) == {key(SERVICE[V4]): value(1, 1, 3)}, when
            table.publish()
            # The kernel frees a link that no process and no pin holds some milliseconds later.
            deadline, pause = time.monotonic() + _PATIENCE, threading.Event()
            while (found := table.problems()) and time.monotonic() < deadline:
                pause.wait(0.01)
            assert found == [], when
            assert answer_from(SERVICE[V4]) == port, when
            present = [path.name for path in (bpffs / "kproxy" / "layout-1").iterdir()]
            assert len(present) == 3, (present, when)
        finally:
            table.remove()
    except BpfError as error:
        pytest.fail(f"{error} {when}")
    assert not any(hook_programs(cgroup, hook).programs for hook in programs.HOOKS.values()), when
