"""What the tests of programs at sockets share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.kernel.bpf.socket_table import KernelSocketTable
from kproxy.kernel.bpf.types import BpfError
from tests.support.bpf import SMALL, child_cgroup, private_bpffs


@pytest.fixture
def bpffs() -> Iterator[Path]:
    """A directory of a bpffs that ends with the test."""
    with private_bpffs() as directory:
        yield directory


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup that has this process in it during the test."""
    with child_cgroup("kproxy-test") as path:
        yield path


@pytest.fixture
def table(cgroup: Path, bpffs: Path) -> Iterator[KernelSocketTable]:
    """A published, empty table."""
    try:
        found = KernelSocketTable.open(cgroup, bpffs / "kproxy", SMALL)
        found.publish()
    except BpfError as error:
        pytest.skip(f"this kernel takes no programs at sockets: {error}")
    yield found
    found.remove()
