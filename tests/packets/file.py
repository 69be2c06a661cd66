"""A configuration file that tests change while kproxy runs with it."""

from pathlib import Path
from typing import Any

import yaml

from tests.packets.cluster import CLUSTER_CIDRS, Cluster
from tests.packets.modes import pins

NOT_OF_KUBE_PROXY = ("ebpf",)
KUBEADM = Path(__file__).parents[1] / "config" / "data" / "kubeadm-1.36.yaml"


class File:
    """kubeadm's file with the settings of this cluster; every write replaces the whole file.

    `masquerading` is the section whose masqueradeAll and masqueradeBit count in the cluster's mode.
    """

    def __init__(self, path: Path, cluster: Cluster) -> None:
        self.path = path
        self._document: dict[str, Any] = yaml.safe_load(KUBEADM.read_text())
        self._own: dict[str, Any] = {}
        modes = dict(zip(cluster.mode.arguments, cluster.mode.arguments[1:], strict=False))
        mode = modes.get("--proxy-mode", "")
        self.masquerading = "nftables" if mode in {"nftables", *NOT_OF_KUBE_PROXY} else "iptables"
        if cluster.lab.cgroup is not None:
            self._own["ebpf"] = {
                "cgroupRoot": str(cluster.lab.cgroup.path),
                "pinDirectory": str(pins(cluster.lab)),
            }
        self._document["clientConnection"]["kubeconfig"] = str(cluster.kubeconfig)
        self._document["clusterCIDR"] = CLUSTER_CIDRS
        self.set(mode=mode)

    def set(self, **sections: Any) -> None:
        """Change fields (fields of a section are merged) and replace the file atomically.

        A mode that kube-proxy does not have stands in kproxy's own document.
        """
        if "mode" in sections:
            self._own.pop("mode", None)
        for name, value in sections.items():
            if name == "mode" and value in NOT_OF_KUBE_PROXY:
                self._own["mode"] = value
            elif isinstance(value, dict):
                self._document[name] = (self._document.get(name) or {}) | value
            else:
                self._document[name] = value
        self._write()

    def set_own(self, **sections: Any) -> None:
        """Change sections of kproxy's own document; the next `set` writes the file."""
        self._own |= sections

    def unset(self, section: str, field: str) -> None:
        """Remove a field of a section; the next `set` writes the file."""
        del self._document[section][field]

    def _write(self) -> None:
        new = self.path.with_name(".new")
        documents = [self._document]
        if self._own:
            documents.append({"apiVersion": "kproxy.io/v1alpha1", "kind": "KproxyConfiguration"} | self._own)
        new.write_text(yaml.safe_dump_all(documents))
        new.rename(self.path)
