"""The contenders: kube-proxy with each variant of iptables, and kproxy in each of its modes."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.peer.objects import SPEC

CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/56"

PEER_VARIABLE = "KPROXY_PEER"

Version = tuple[int, int]
NEWEST: Version = (1, 1000)
"""Newer than any."""

_PROGRAMS = tuple(f"{stem}{part}" for stem in ("iptables", "ip6tables") for part in ("", "-save", "-restore"))
_COMMON = (
    f"--hostname-override={SPEC.node_name}",
    f"--cluster-cidr={CLUSTER_CIDRS}",
    "--iptables-min-sync-period=10ms",
    "--v=2",
)
_PEER = (
    "--proxy-mode=iptables",
    "--kube-api-content-type=application/json",
    "--conntrack-max-per-core=0",
    "--conntrack-min=0",
    "--conntrack-tcp-timeout-established=0s",
    "--conntrack-tcp-timeout-close-wait=0s",
)
"""The embedded server speaks JSON; sysctls that a network namespace lacks end kube-proxy, so none is set."""


class PeerError(ValueError):
    """The kube-proxy cannot be used; `str()` gives the reason."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A kube-proxy program and its version, (1, 36)."""

    path: Path
    version: Version

    @staticmethod
    def find() -> "Peer":
        """Return the program named by KPROXY_PEER. Raises PeerError if it is not a usable kube-proxy."""
        program = os.environ.get(PEER_VARIABLE, "")
        if not program:
            raise PeerError(f"{PEER_VARIABLE} names no kube-proxy to compare with")
        try:
            version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        except OSError as error:
            raise PeerError(f"{PEER_VARIABLE}={program}: {error.strerror}") from error
        found = re.search(r"\bv(\d+)\.(\d+)\.", version.stdout)
        if found is None:
            raise PeerError(
                f"{PEER_VARIABLE}={program}: --version printed {version.stdout + version.stderr!r}"
            )
        return Peer(Path(program).resolve(), (int(found[1]), int(found[2])))


@dataclass(frozen=True, slots=True)
class Contender:
    """One program in one mode. `peer` is None for kproxy itself."""

    name: str
    variant: str
    flags: tuple[str, ...] = ()
    peer: Peer | None = None

    def __str__(self) -> str:
        return self.name

    def argv(self, kubeconfig: Path) -> list[str]:
        """The command line."""
        common = [f"--kubeconfig={kubeconfig}", *_COMMON, *self.flags]
        if self.peer is None:
            return [sys.executable, "-m", "kproxy", "run", *common]
        dual = ["--feature-gates=IPv6DualStack=true"] if self.peer.version < (1, 21) else []
        return [str(self.peer.path), *common, *_PEER, *dual]

    def environment(self, folder: Path) -> dict[str, str]:
        """Its environment: a PATH in which `iptables` is its variant, and an xtables lock of its own."""
        folder.mkdir(parents=True)
        for program in _PROGRAMS:
            stem, dash, part = program.partition("-")
            found = shutil.which(f"{stem}-{self.variant}{dash}{part}")
            if found is not None:
                (folder / program).symlink_to(Path(found).resolve())
        lock = {"XTABLES_LOCKFILE": str(folder / "xtables.lock")}
        return {**os.environ, **lock, "PATH": f"{folder}:{os.environ['PATH']}"}


def contenders(peer: Peer) -> tuple[Contender, ...]:
    """All that are compared with the first one, which is kube-proxy with iptables-nft."""
    scalable = ("--iptables-layout=scalable",)
    nftables = ("--proxy-mode=nftables", "--nodeport-addresses=0.0.0.0/0,::/0")
    return (
        Contender("kube-proxy nft", "nft", peer=peer),
        Contender("kube-proxy legacy", "legacy", peer=peer),
        Contender("kproxy nft", "nft", ("--iptables-variant=nft",)),
        Contender("kproxy legacy", "legacy", ("--iptables-variant=legacy",)),
        Contender("kproxy scalable", "nft", ("--iptables-variant=nft", *scalable)),
        Contender("kproxy nftables", "nft", (*nftables, "--nftables-reject-unallocated=false")),
    )
