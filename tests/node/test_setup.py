"""What is set on a node at start: values as kube-proxy computes them, and refusals that are only told."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kproxy.config.model import ConntrackSettings
from kproxy.node.setup import CONNTRACK_MAX, HASH_SIZE, conntrack_max, set_conntrack, set_oom_score

NAMES = (
    "tcp_timeout_established",
    "tcp_timeout_close_wait",
    "udp_timeout",
    "udp_timeout_stream",
    "tcp_be_liberal",
)


def kernel(root: Path, *, limit: int = 7, buckets: int = 1) -> tuple[Path, Path]:
    """Directories in the place of /proc/sys and /sys."""
    proc, sys = root / "proc", root / "sys"
    for name in NAMES:
        file = proc / "net/netfilter" / f"nf_conntrack_{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\n" if name != "tcp_be_liberal" else "0\n")
    (proc / CONNTRACK_MAX).write_text(f"{limit}\n")
    (sys / HASH_SIZE).parent.mkdir(parents=True)
    (sys / HASH_SIZE).write_text(f"{buckets}\n")
    return proc, sys


def values(proc: Path) -> list[str]:
    return [(proc / "net/netfilter" / f"nf_conntrack_{name}").read_text().strip() for name in ("max", *NAMES)]


@pytest.mark.parametrize(
    ("per_core", "least", "cores", "expected"),
    [
        (32768, 131072, 4, 131072),
        (32768, 131072, 8, 262144),
        (32768, 131072, 1, 131072),
        (0, 131072, 8, None),
        (32768, 131072, 64, 1 << 20),
        (32768, 2000000, 2, 2000000),
        (32768, 2000000, 64, 1 << 20),
    ],
)
def test_the_limit_grows_with_the_cores(per_core: int, least: int, cores: int, expected: int | None) -> None:
    assert conntrack_max(ConntrackSettings(max_per_core=per_core, min=least), cores) == expected


def test_the_defaults_are_written(tmp_path: Path) -> None:
    proc, sys = kernel(tmp_path)
    set_conntrack(ConntrackSettings(), 8, proc=proc, sys=sys)
    assert values(proc) == ["262144", "86400", "3600", "1", "1", "0"]
    assert (sys / HASH_SIZE).read_text() == "65536"


def test_everything_can_be_set(tmp_path: Path) -> None:
    proc, sys = kernel(tmp_path, buckets=999999)
    settings = ConntrackSettings(
        max_per_core=1,
        min=2,
        tcp_established_timeout=3.0,
        tcp_close_wait_timeout=4.0,
        tcp_be_liberal=True,
        udp_timeout=5.0,
        udp_stream_timeout=6.9,
    )
    set_conntrack(settings, 4, proc=proc, sys=sys)
    assert values(proc) == ["4", "3", "4", "5", "6", "1"]
    assert (sys / HASH_SIZE).read_text() == "999999\n"


def test_zero_leaves_what_is(tmp_path: Path) -> None:
    proc, sys = kernel(tmp_path)
    settings = ConntrackSettings(max_per_core=0, tcp_established_timeout=0.0, tcp_close_wait_timeout=0.0)
    set_conntrack(settings, 4, proc=proc, sys=sys)
    assert values(proc) == ["7", "1", "1", "1", "1", "0"]
    assert (sys / HASH_SIZE).read_text() == "1\n"


def test_what_cannot_be_set_is_named_and_the_rest_is_set(tmp_path: Path) -> None:
    proc, sys = kernel(tmp_path)
    (proc / CONNTRACK_MAX).unlink()
    (sys / HASH_SIZE).unlink()
    with capture_logs() as logs:
        set_conntrack(ConntrackSettings(), 4, proc=proc, sys=sys)
    warned = [(line["event"], line["name"]) for line in logs if line["log_level"] == "warning"]
    assert warned == [("sysctl_failed", CONNTRACK_MAX), ("sysctl_failed", HASH_SIZE)]
    assert (proc / "net/netfilter/nf_conntrack_tcp_timeout_established").read_text() == "86400"


def test_the_oom_score_is_written(tmp_path: Path) -> None:
    file = tmp_path / "oom_score_adj"
    file.write_text("0\n")
    set_oom_score(-999, file)
    assert file.read_text() == "-999"


def test_a_refused_oom_score_is_logged(tmp_path: Path) -> None:
    with capture_logs() as logs:
        set_oom_score(-999, tmp_path / "none" / "oom_score_adj")
    assert [(line["event"], line["log_level"]) for line in logs] == [("oom_score_failed", "warning")]
    assert logs[0]["value"] == -999


def test_this_kernel_takes_a_higher_score() -> None:
    """Raising one's own score needs no rights, so the real file can be tried: with the score that it has."""
    file = Path("/proc/self/oom_score_adj")
    before = file.read_text()
    set_oom_score(int(before))
    assert file.read_text() == before
