"""The contenders: kproxy's modes, and any other proxy that understands kube-proxy's flags."""

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cluster

NODE = "node-0"

MODES: dict[str, tuple[str, str]] = {
    "nft": ("iptables", "nft"),
    "legacy": ("iptables", "legacy"),
    "ipvs": ("ipvs", "legacy"),
    "nftables": ("nftables", "nft"),
    "ebpf": ("ebpf", "nft"),
}
"""Name -> the --proxy-mode it stands for and the variant of iptables it runs with."""

OF_KPROXY_ONLY = frozenset({"ebpf"})
"""Modes that no other proxy has; their programs are at the cgroup of the node."""

_PROGRAMS = tuple(f"{stem}{part}" for stem in ("iptables", "ip6tables") for part in ("", "-save", "-restore"))

_NO_SYSCTLS = (
    "--conntrack-max-per-core=0",
    "--conntrack-min=0",
    "--conntrack-tcp-timeout-established=0s",
    "--conntrack-tcp-timeout-close-wait=0s",
)
"""kube-proxy gives up where it cannot write these, as in a network namespace."""


@dataclass(frozen=True)
class Contender:
    """One program in one mode. `command` is None for kproxy itself."""

    name: str
    mode: str
    command: str | None = None
    flags: tuple[str, ...] = ()

    def argv(self, kubeconfig: Path) -> list[str]:
        """The command line."""
        proxy_mode, variant = MODES[self.mode]
        common = [
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NODE}",
            f"--cluster-cidr={cluster.CLUSTER_CIDR}",
            f"--proxy-mode={proxy_mode}",
            "--healthz-bind-address=",
        ]
        if self.command is not None:
            return [*shlex.split(self.command), *common, *_NO_SYSCTLS]
        variants = [f"--iptables-variant={variant}"]
        return [sys.executable, "-m", "kproxy", "run", *common, *variants, "-v", "4", *self.flags]

    def path(self, folder: Path) -> str:
        """A directory of links by which `iptables` is the mode's variant, for those that look in the PATH."""
        variant = MODES[self.mode][1]
        folder.mkdir(exist_ok=True)
        for program in _PROGRAMS:
            stem, dash, part = program.partition("-")
            found = shutil.which(f"{stem}-{variant}{dash}{part}")
            link = folder / program
            if found is not None and not link.is_symlink():
                link.symlink_to(Path(found).resolve())
        return str(folder)


def contenders(modes: list[str], peers: list[str], flags: tuple[str, ...]) -> list[Contender]:
    """Return kproxy and each peer (`NAME=COMMAND`) in each mode. Raises ValueError for an invalid one."""
    found: list[Contender] = []
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"--modes {mode!r}: not one of {', '.join(MODES)}")
        found.append(Contender("kproxy", mode, flags=flags))
        for peer in () if mode in OF_KPROXY_ONLY else peers:
            name, equals, command = peer.partition("=")
            if not name or not equals or not command:
                raise ValueError(f"--peer {peer!r}: not NAME=COMMAND")
            if name == "kproxy":
                raise ValueError(f"--peer {peer!r}: the name is taken")
            found.append(Contender(name, mode, command))
    return found
