"""The limit of descriptors, and how the servers share what others do not need."""

import resource
import subprocess
import sys

import pytest

from kproxy.kernel.limits import DESCRIPTORS_MAX, raise_descriptor_limit
from kproxy.node.descriptors import RESERVED, share

_SHOWN = (
    "import resource; from kproxy.kernel.limits import raise_descriptor_limit;"
    "print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
)


@pytest.mark.parametrize("limit", [16, 64, 256, 500, 1024, 4096, 65536, DESCRIPTORS_MAX])
def test_the_servers_never_use_up_what_others_need(limit: int) -> None:
    shares = share(limit)
    parts = (shares.healthz, shares.metrics, shares.checks, shares.ports)
    assert min(parts) >= 1
    assert sum(parts) <= limit - min(RESERVED, limit * 3 // 4)


def test_an_ordinary_limit_is_enough_for_what_clusters_have() -> None:
    tiny, low, high = share(64), share(1024), share(1 << 16)
    assert (tiny.healthz, tiny.metrics, tiny.checks, tiny.ports) == (2, 1, 4, 9)
    assert (low.healthz, low.metrics, low.checks, low.ports) == (128, 64, 192, 384)
    assert (high.healthz, high.metrics, high.checks) == (256, 128, 512)
    assert high.ports > 64000


@pytest.mark.parametrize(("soft", "hard"), [(300, 700), (700, 700)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int) -> None:
    shell = f"ulimit -Sn {soft}; ulimit -Hn {hard}; exec {sys.executable} -c '{_SHOWN}'"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{hard} {hard} {hard}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, resource.RLIM_INFINITY), DESCRIPTORS_MAX),
        ((1024, 1 << 30), DESCRIPTORS_MAX),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
        ((1 << 22, 1 << 30), None),
    ],
)
def test_no_limit_becomes_a_reasonable_one(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: int | None
) -> None:
    """What is inherited by tools that close every descriptor there could be must not grow without need."""
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: done.append(pair))
    assert raise_descriptor_limit() >= DESCRIPTORS_MAX
    assert done == ([] if after is None else [(after, before[1])])


@pytest.mark.parametrize("error", [OSError(1, "Operation not permitted"), ValueError("not allowed")])
def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda _: (512, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_descriptor_limit() == 512
