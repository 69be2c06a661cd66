"""Which capabilities the socket table needs, and what it says where one is missing."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.bpf import programs
from kproxy.kernel.bpf.socket_table import KernelSocketTable
from kproxy.kernel.bpf.types import BpfError, Capacity, Sizes
from tests.support.bpf import SERVICE, SMALL, answer_from, endpoint, serve

pytestmark = pytest.mark.root
_NET_ADMIN, _BPF = 12, 39  # include/uapi/linux/capability.h
_KEEP_CAPABILITIES = 8  # PR_SET_KEEPCAPS
_VERSION_3 = 0x20080522
_USER = 1000
V4 = Family.IPV4


def as_user(capabilities: set[int], work: Callable[[], str]) -> str:
    """Run `work` in a child with another user and these capabilities only; what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        text = "the child failed"
        try:
            _become(capabilities)
            text = work()
        except BaseException as error:  # noqa: BLE001 - the parent's test fails with it
            text = repr(error)
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def _become(capabilities: set[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setresgid(_USER, _USER, _USER)
    os.setresuid(_USER, _USER, _USER)
    words = [sum(1 << each % 32 for each in capabilities if each // 32 == word) for word in (0, 1)]
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    wanted = (ctypes.c_uint32 * 6)(words[0], words[0], 0, words[1], words[1], 0)
    assert libc.capset(header, wanted) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def owned(bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bpffs of that user, who need not be able to read the files of this project."""
    os.chown(bpffs, _USER, _USER)
    content = programs.connect_object()
    monkeypatch.setattr(programs, "connect_object", lambda: content)
    return bpffs


def test_two_capabilities_suffice_for_a_user_who_is_not_root(cgroup: Path, owned: Path) -> None:
    """Load, attach, pin, write memory, grow, adopt, repair: all that a running proxy does."""

    def work(port: int) -> str:
        table = KernelSocketTable.open(cgroup, owned / "kproxy", SMALL)
        table.publish()
        serve(table, V4, port)
        grown = table.grow(Sizes(Capacity(100, 300), Capacity(100, 300), 100))
        serve(grown, V4, port)
        table.publish(grown)
        table.close()
        following = KernelSocketTable.open(cgroup, owned / "kproxy", SMALL)
        following.publish()
        return f"{following.fresh} {following.problems()} {len(following.frontends(V4))}"

    with endpoint(V4) as port:
        assert as_user({_BPF, _NET_ADMIN}, lambda: work(port)) == "False [] 1"
        assert answer_from(SERVICE[V4]) == port


@pytest.mark.parametrize(
    ("capabilities", "what"),
    [(set(), "map frontends4"), ({_NET_ADMIN}, "map frontends4"), ({_BPF}, "program getpeername4")],
    ids=["none", "without CAP_BPF", "without CAP_NET_ADMIN"],
)
def test_a_missing_capability_is_named(capabilities: set[int], what: str, cgroup: Path, owned: Path) -> None:
    def work() -> str:
        try:
            KernelSocketTable.open(cgroup, owned / "kproxy", SMALL).publish()
        except BpfError as error:
            return f"{error.kind}: {error.message}"
        return "it worked"

    message = as_user(capabilities, work)
    assert message.startswith(f"missing: {what}")
    assert "needs CAP_BPF and CAP_NET_ADMIN" in message


def test_a_bpffs_of_another_user_is_named(cgroup: Path, bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = programs.connect_object()
    monkeypatch.setattr(programs, "connect_object", lambda: content)

    def work() -> str:
        try:
            KernelSocketTable.open(cgroup, bpffs / "kproxy", SMALL)
        except BpfError as error:
            return f"{error.kind}: {error.message}"
        return "it worked"

    message = as_user({_BPF, _NET_ADMIN}, work)
    assert message == f"missing: {bpffs}/kproxy: Permission denied"
