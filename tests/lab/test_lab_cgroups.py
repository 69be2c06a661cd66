"""The cgroup of a lab's node: who is in it, what a program there sees, and what is left of it."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.kernel.bpf.pins import BPFFS, file_system
from kproxy_lab.lab import Lab, LabSpec, Namespace, cgroups
from kproxy_lab.lab.namespaces import sweep

pytestmark = pytest.mark.root

SMALL = LabSpec(local_pods=1, remote_pods=1, client_addresses=1, cgroup=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing(SMALL):
        pytest.skip("; ".join(reasons))
    with Lab(SMALL) as made:
        yield made


def cgroup_of(process: str) -> str:
    lines = Path(f"/proc/{process}/cgroup").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def own_cgroups(pid: int) -> list[str]:
    return [each.name for each in cgroups.home().iterdir() if each.name.startswith(f"kplab-{pid}-")]


def mounts() -> set[str]:
    return set(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines())


def test_each_pod_and_the_node_has_a_cgroup_below_the_nodes_and_others_have_none(lab: Lab) -> None:
    assert lab.cgroup is not None
    node = f"/{lab.cgroup.path.name}"
    inside: list[tuple[Namespace, str]] = [(lab.node, "host"), (lab.pods[0].namespace, "local-0")]
    for namespace, name in inside:
        assert namespace.call(cgroup_of, "thread-self").endswith(f"{node}/{name}")
        assert namespace.run(["cat", "/proc/self/cgroup"]).stdout.splitlines()[-1].endswith(f"{node}/{name}")
        with namespace.popen(["cat", "/proc/self/cgroup"], stdout=subprocess.PIPE) as process:
            assert process.communicate(timeout=10)[0].decode().splitlines()[-1].endswith(f"{node}/{name}")
    for outside in (lab.client, lab.peer, lab.fabric, lab.pods[1].namespace):
        assert outside.call(cgroup_of, "thread-self") == cgroup_of("self")
        assert node not in outside.run(["cat", "/proc/self/cgroup"]).stdout
    assert node not in cgroup_of("self")


def test_a_thread_that_enters_a_pod_is_in_its_cgroup_so_long(lab: Lab) -> None:
    seen: list[str] = []

    def visit() -> None:
        with lab.pods[0].namespace.enter():
            seen.append(cgroup_of("thread-self"))
        seen.append(cgroup_of("thread-self"))

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    assert seen[0].endswith("/local-0")
    assert seen[1] == cgroup_of("self")


def test_the_pins_file_system_is_the_labs_own(lab: Lab) -> None:
    assert lab.cgroup is not None
    assert file_system(lab.cgroup.bpffs) == BPFFS
    with Lab(SMALL) as other:
        assert other.cgroup is not None
        (lab.cgroup.bpffs / "one").mkdir()
        assert not (other.cgroup.bpffs / "one").exists()
        assert other.cgroup.path != lab.cgroup.path
    assert (lab.cgroup.bpffs / "one").is_dir()
    with lab.cgroup.read_only(), pytest.raises(OSError, match="Read-only"):
        (lab.cgroup.bpffs / "two").mkdir()
    (lab.cgroup.bpffs / "two").mkdir()
    assert {"one", "two"} <= set(lab.node.run(["ls", str(lab.cgroup.bpffs)]).stdout.split())


def test_nothing_is_left_after_close(lab: Lab) -> None:
    before, mounted = own_cgroups(os.getpid()), mounts()
    threads = set(threading.enumerate())
    with Lab(SMALL) as other:
        assert other.cgroup is not None
        held = other.node.open_socket(socket.AF_INET, socket.SOCK_STREAM)
        other.node.popen(["sleep", "600"])
        assert len(own_cgroups(os.getpid())) == len(before) + 1
        assert not any("bpf" in line for line in mounts() - mounted)
    held.close()
    assert own_cgroups(os.getpid()) == before
    assert not other.cgroup.bpffs.exists()
    assert set(threading.enumerate()) <= threads


def test_what_a_killed_process_left_is_swept_up(lab: Lab) -> None:
    program = (
        "from kproxy_lab.lab import Lab, LabSpec\n"
        f"lab = Lab({SMALL!r})\n"
        "lab.node.popen(['sleep', '600'])\n"
        "print('made', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "made\n"
        cgroups.sweep()
        assert len(own_cgroups(child.pid)) == 1  # its owner lives
        child.kill()
        child.wait()
    sweep()
    cgroups.sweep()
    assert own_cgroups(child.pid) == []
    assert lab.cgroup is not None
    assert lab.cgroup.path.is_dir()
