"""Changes of the mode of a running kproxy, and leftovers of previous modes in the kernel."""

from tests.packets.cluster import Cluster
from tests.packets.file import File
from tests.packets.socket_table import programs

SERVICE_CHAINS = ("KUBE-SVC-", "KUBE-SEP-", ":KUBE-SERVICES", "KUBE-FIREWALL")


def choose(file: File, mode: str) -> None:
    """Write a mode, `nftables` or one with its variant: `iptables/nft`."""
    name, _, variant = mode.partition("/")
    file.set_own(iptables={"variant": variant})
    file.set(mode=name)


def remains(cluster: Cluster, *, but: str) -> list[str]:
    """Return the objects of all modes in the node's kernel, except those that the mode `but` uses."""
    node = cluster.lab.node
    found = []
    for family in ("", "6"):
        for variant in ("nft", "legacy"):
            if but == f"iptables/{variant}":
                continue
            marks = SERVICE_CHAINS if but == f"ipvs/{variant}" else ("KUBE", "KPROXY")
            dump = node.run([f"ip{family}tables-{variant}-save"], check=False).stdout
            found += [line for line in dump.splitlines() if any(mark in line for mark in marks)]
    if cluster.lab.cgroup is not None and but != "ebpf":
        found += [f"program at {hook}" for hook in programs(cluster.lab)]
        found += [f"pin {path}" for path in cluster.lab.cgroup.bpffs.glob("kproxy*")]
    if but not in {"nftables", "ebpf"} and cluster.mode.name != "ipvs":
        tables = node.run(["nft", "list", "tables"]).stdout.splitlines()
        found += [line for line in tables if "kproxy" in line]
    return found


def ipvs_remains(cluster: Cluster) -> list[str]:
    node = cluster.lab.node
    found = node.run(["ipvsadm", "-Sn"]).stdout.splitlines()
    found += node.run(["ipset", "list", "-n"]).stdout.splitlines()
    return found + [
        line for line in node.run(["ip", "-o", "link"]).stdout.splitlines() if "kube-ipvs0" in line
    ]
