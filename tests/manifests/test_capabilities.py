"""The capabilities that the DaemonSet keeps are enough, and none of them is spare."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy.testing.lab import Lab

pytestmark = pytest.mark.root

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


def once(flags: tuple[str, ...], *capabilities: str) -> subprocess.CompletedProcess[str]:
    """One sync in a fresh network namespace, as root with these capabilities only."""
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    kproxy = [sys.executable, "-m", "kproxy", "run", "--once", "--manifests", str(EXAMPLES)]
    return subprocess.run(
        [
            *("unshare", "--net", "setpriv", f"--bounding-set={kept}", "--inh-caps=-all"),
            *kproxy,
            *("--hostname-override", "node-a", "--cluster-cidr", "10.244.0.0/16"),
            *flags,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(autouse=True)
def _possible() -> None:
    reasons = Lab.missing()
    if shutil.which("setpriv") is None:
        reasons = [*reasons, "no setpriv"]
    if reasons:
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize(
    ("mode", "capabilities", "status"),
    [
        ("nft", ("NET_ADMIN", "NET_RAW"), 0),
        ("legacy", ("NET_ADMIN", "NET_RAW"), 0),
        ("nftables", ("NET_ADMIN", "NET_RAW"), 0),
        ("nft", ("NET_ADMIN",), 0),
        ("legacy", ("NET_ADMIN",), 1),
        ("nftables", ("NET_ADMIN",), 0),
        ("nft", ("NET_RAW",), 1),
        ("nftables", ("NET_RAW",), 1),
    ],
)
def test_these_capabilities_decide(mode: str, capabilities: tuple[str, ...], status: int) -> None:
    flags = ("--proxy-mode", mode) if mode == "nftables" else ("--iptables-variant", mode)
    done = once(flags, *capabilities)
    assert done.returncode == status, done.stderr
    assert ("event=synced" in done.stderr) == (status == 0)
