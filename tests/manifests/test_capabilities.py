"""The capabilities that the DaemonSet keeps are enough, and none of them is spare."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy_lab.lab import Lab

pytestmark = pytest.mark.root

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")

FLAGS = {
    "nft": ("--iptables-variant", "nft"),
    "legacy": ("--iptables-variant", "legacy"),
    "nftables": ("--proxy-mode", "nftables"),
    # the user-mode kernel has no nf_tables
    "ipvs": ("--proxy-mode", "ipvs", "--iptables-variant", "legacy"),
}
IPVS = pytest.param("ipvs", marks=pytest.mark.ipvs)


def once(mode: str, *capabilities: str, user: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """One sync in a fresh network namespace with these capabilities only, as root or as a user."""
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    held = [f"--inh-caps={kept}", f"--ambient-caps={kept}"] if user else ["--inh-caps=-all"]
    kproxy = [sys.executable, "-m", "kproxy", "run", "--once", "--manifests", str(EXAMPLES)]
    return subprocess.run(
        [
            # IPVS takes a destination only where there is a table of local addresses.
            *("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"'),
            *("setpriv", *user, f"--bounding-set={kept}", *held),
            *kproxy,
            *("--hostname-override", "node-a", "--cluster-cidr", "10.244.0.0/16"),
            *FLAGS[mode],
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
    ("capabilities", "status"),
    [(("NET_ADMIN", "NET_RAW"), 0), (("NET_ADMIN",), 0), (("NET_RAW",), 1)],
)
@pytest.mark.parametrize("mode", ["nft", "nftables"])
def test_one_capability_is_enough(mode: str, capabilities: tuple[str, ...], status: int) -> None:
    done = once(mode, *capabilities)
    assert (done.returncode, "event=synced" in done.stderr) == (status, status == 0), done.stderr


@pytest.mark.parametrize(("capabilities", "status"), [(("NET_ADMIN", "NET_RAW"), 0), (("NET_ADMIN",), 1)])
@pytest.mark.parametrize("mode", ["legacy", IPVS])
def test_legacy_needs_another_one(mode: str, capabilities: tuple[str, ...], status: int) -> None:
    done = once(mode, *capabilities)
    assert (done.returncode, "event=synced" in done.stderr) == (status, status == 0), done.stderr


@pytest.mark.parametrize("mode", ["nft", "nftables"])
def test_root_is_not_needed(mode: str) -> None:
    if not _everybody_reads(EXAMPLES):
        pytest.skip("this tree is not readable for everybody")
    done = once(mode, "NET_ADMIN", user=NOBODY)
    assert (done.returncode, "event=synced" in done.stderr) == (0, True), done.stderr


def test_legacy_says_what_a_user_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not _everybody_reads(EXAMPLES):
        pytest.skip("this tree is not readable for everybody")
    lock = tmp_path / "xtables.lock"
    lock.touch(0o600)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    done = once("legacy", "NET_ADMIN", "NET_RAW", user=NOBODY)
    assert (done.returncode, f"lock file {lock}: Permission denied" in done.stderr) == (1, True), done.stderr


def _everybody_reads(path: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (path, *path.parents))
