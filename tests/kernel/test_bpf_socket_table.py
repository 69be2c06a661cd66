"""The socket table in the kernel: what it adopts, how it grows under traffic, and what others read of it."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.bpf import links, programs
from kproxy.kernel.bpf.links import hook_programs
from kproxy.kernel.bpf.socket_table import KernelSocketTable, open_published
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Capacity, Change, Sizes, SocketTable
from tests.support.bpf import (
    LARGER,
    PORT,
    SERVICE,
    SMALL,
    answer_from,
    endpoint,
    key,
    reopened,
    serve,
    value,
    write_slot,
)

pytestmark = pytest.mark.root
MORE_COUNTERS = Sizes(Capacity(64, 256), Capacity(64, 256), 128)
V4 = Family.IPV4


def test_it_is_a_socket_table(table: KernelSocketTable) -> None:
    as_interface: SocketTable = table
    assert as_interface.fresh
    assert as_interface.published
    assert as_interface.sizes == SMALL
    assert as_interface.capacity(V4) == SMALL.ipv4


def test_nothing_is_attached_before_publication(cgroup: Path, bpffs: Path) -> None:
    table = reopened(cgroup, bpffs)
    try:
        assert table.fresh
        assert not table.published
        assert not any(hook_programs(cgroup, hook).programs for hook in programs.HOOKS.values())
        missing = {each.object for each in table.problems() if each.change is Change.MISSING}
        assert missing == {f"link {name}" for name in programs.HOOKS}
    finally:
        table.remove()


def test_a_published_table_has_no_problems_and_one_program_on_each_hook(
    table: KernelSocketTable, cgroup: Path
) -> None:
    assert table.problems() == []
    table.publish()
    assert [len(hook_programs(cgroup, hook).programs) for hook in programs.HOOKS.values()] == [1, 1, 1, 1]
    assert table.problems() == []


def test_traffic_flows_without_a_process_and_the_next_one_adopts_the_maps(
    table: KernelSocketTable, cgroup: Path, bpffs: Path
) -> None:
    with endpoint(V4) as port:
        serve(table, V4, port)
        table.close()
        assert answer_from(SERVICE[V4]) == port
        following = KernelSocketTable.open(cgroup, bpffs / "kproxy", LARGER)
        try:
            assert not following.fresh
            assert not following.published
            assert following.sizes == SMALL
            assert following.frontends(V4) == {key(SERVICE[V4]): value(1, 1, 3)}
            assert following.connections(4)[3] == 1
            assert following.problems() == []
            following.publish()
            assert following.problems() == []
            assert [len(hook_programs(cgroup, each).programs) for each in programs.HOOKS.values()] == [1] * 4
            with endpoint(V4) as other:
                write_slot(following, V4, 1, "127.0.0.1", other)
                assert answer_from(SERVICE[V4]) == other
        finally:
            following.close()


def test_a_process_that_is_killed_leaves_its_services(cgroup: Path, bpffs: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.support import bpf\n"
        "from kproxy.addresses import Family\n"
        "from kproxy.kernel.bpf.socket_table import KernelSocketTable\n"
        "table = KernelSocketTable.open(Path(sys.argv[1]), Path(sys.argv[2]), bpf.SMALL)\n"
        "table.publish(); bpf.serve(table, Family.IPV4, int(sys.argv[3])); print('served', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with endpoint(V4) as port:
        argv = [sys.executable, "-c", code, str(cgroup), str(bpffs / "kproxy"), str(port)]
        root = Path(__file__).parents[2]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"served\n"
            with pytest.raises(BpfError, match="another process") as caught:
                reopened(cgroup, bpffs)
            assert caught.value.kind is BpfFailure.OCCUPIED
            process.send_signal(signal.SIGKILL)
        assert answer_from(SERVICE[V4]) == port
        table = reopened(cgroup, bpffs)
        assert not table.fresh
        assert table.connections(4)[3] == 1
        table.remove()


@pytest.mark.parametrize("sizes", [LARGER, MORE_COUNTERS], ids=["maps", "counters"])
def test_a_larger_set_takes_over(sizes: Sizes, table: KernelSocketTable, bpffs: Path) -> None:
    with endpoint(V4) as old, endpoint(V4) as new:
        serve(table, V4, old)
        assert answer_from(SERVICE[V4]) == old
        grown = table.grow(sizes)
        serve(grown, V4, new)
        assert answer_from(SERVICE[V4]) == old
        before = table.slots(V4)
        table.publish(grown)
        assert answer_from(SERVICE[V4]) == new
        assert table.sizes == sizes
        assert table.connections(4)[3] == 3
        assert table.problems() == []
        with pytest.raises(ValueError, match="released"):
            before[0] = 1
        found = open_published(bpffs / "kproxy")
        assert found.sizes == sizes
        found.close()
        assert [path.name for path in (bpffs / "kproxy" / "layout-1").glob("set-*")] == ["set-2"]


def test_a_set_that_is_not_published_is_closed_without_a_trace(table: KernelSocketTable) -> None:
    with endpoint(V4) as port:
        serve(table, V4, port)
        table.grow(LARGER).close()
        assert answer_from(SERVICE[V4]) == port
        assert table.problems() == []


def test_programs_and_maps_are_replaced_under_traffic_without_a_failure(table: KernelSocketTable) -> None:
    with endpoint(V4) as port:
        serve(table, V4, port)
        with _traffic() as done:
            for number in range(10):
                grown = table.grow(LARGER if number % 2 else SMALL)
                serve(grown, V4, port)
                table.publish(grown)
                done.wait_for_some()
            attempts = done()
        assert set(attempts) == {port}
        assert table.connections(4)[3] == len(attempts)


def test_open_sockets_keep_the_name_of_their_peer_when_maps_are_replaced(table: KernelSocketTable) -> None:
    with endpoint(V4) as port:
        serve(table, V4, port)
        with socket.create_connection((SERVICE[V4], PORT)) as client:
            table.publish(table.grow(LARGER))
            assert client.getpeername() == (SERVICE[V4], PORT)


def test_removal_leaves_nothing(cgroup: Path, bpffs: Path) -> None:
    table = reopened(cgroup, bpffs)
    table.publish()
    before = {path.name for path in bpffs.iterdir()} - {"kproxy"}
    table.remove()
    assert {path.name for path in bpffs.iterdir()} == before
    assert not any(hook_programs(cgroup, hook).programs for hook in programs.HOOKS.values())


def test_a_growth_that_fails_after_a_restart_leaves_the_maps_that_served(
    table: KernelSocketTable, cgroup: Path, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint(V4) as port, endpoint(V4) as other:
        serve(table, V4, port)
        table.close()
        following = reopened(cgroup, bpffs)
        grown = following.grow(LARGER)
        serve(grown, V4, other)
        real, updates = links.update, []

        def failing(link: int, program: int, name: str) -> None:
            updates.append(name)
            if len(updates) == 8:
                raise BpfError(BpfFailure.INTERRUPTED, "no memory")
            real(link, program, name)

        monkeypatch.setattr(links, "update", failing)
        with pytest.raises(BpfError, match="no memory"):
            following.publish(grown)
        assert answer_from(SERVICE[V4]) == port
        assert following.problems() == []
        assert following.sizes == SMALL
        following.publish(grown)
        assert answer_from(SERVICE[V4]) == other
        assert following.problems() == []
        following.remove()


def test_maps_of_another_shape_are_not_adopted(table: KernelSocketTable, cgroup: Path, bpffs: Path) -> None:
    """As after a downgrade: the links serve on from the old maps until new ones are published."""
    with endpoint(V4) as port:
        serve(table, V4, port)
        table.close()
        pinned = bpffs / "kproxy" / "layout-1" / "set-1"
        (pinned / "slots4").rename(pinned / "slots6")
        following = reopened(cgroup, bpffs)
        try:
            assert following.fresh
            assert answer_from(SERVICE[V4]) == port
            with endpoint(V4) as other:
                serve(following, V4, other)
                following.publish()
                assert answer_from(SERVICE[V4]) == other
            assert following.problems() == []
        finally:
            following.remove()


def test_published_maps_are_read_beside_their_owner(table: KernelSocketTable, bpffs: Path) -> None:
    with endpoint(V4) as port:
        serve(table, V4, port)
        assert answer_from(SERVICE[V4]) == port
        seen = open_published(bpffs / "kproxy")
        assert seen.frontends(V4) == table.frontends(V4)
        assert seen.slots(V4).tolist() == table.slots(V4).tolist()
        assert seen.connections(4)[3] == 1
        with pytest.raises(BpfError):
            seen.write_frontends(V4, {key("10.0.0.1"): value(1, 1)})
        with pytest.raises(TypeError):
            seen.slots(V4)[0] = 1
        seen.close()


def test_without_published_maps_there_is_nothing_to_read(bpffs: Path) -> None:
    with pytest.raises(BpfError, match="no maps are pinned") as caught:
        open_published(bpffs / "kproxy")
    assert caught.value.kind is BpfFailure.INTERRUPTED


@contextmanager
def _traffic() -> Iterator["_Results"]:
    """Connections one after the other in a thread, until the results are asked for."""
    results = _Results()
    thread = threading.Thread(target=results.run)
    thread.start()
    try:
        yield results
    finally:
        results.stop.set()
        thread.join()


class _Results:
    def __init__(self) -> None:
        self.stop = threading.Event()
        self.ended = threading.Event()
        self.each = threading.Semaphore(0)
        self.answers: list[int] = []

    def wait_for_some(self) -> None:
        assert all(self.each.acquire(timeout=30) for _ in range(20))

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.answers.append(answer_from(SERVICE[V4]))
            except OSError as error:
                self.answers.append(-(error.errno or 1))
            self.each.release()
        self.ended.set()

    def __call__(self) -> list[int]:
        self.stop.set()
        assert self.ended.wait(30)
        return self.answers
