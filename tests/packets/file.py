"""A configuration file that tests change while kproxy runs with it."""

from pathlib import Path
from typing import Any

import yaml

from tests.packets.cluster import CLUSTER_CIDRS, Cluster

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
        self.masquerading = "nftables" if modes.get("--proxy-mode") == "nftables" else "iptables"
        self._document["clientConnection"]["kubeconfig"] = str(cluster.kubeconfig)
        self._document["clusterCIDR"] = CLUSTER_CIDRS
        self._document["mode"] = modes.get("--proxy-mode", "")
        self.set()

    def set(self, **sections: Any) -> None:
        """Change fields (fields of a section are merged) and replace the file atomically."""
        for name, value in sections.items():
            if isinstance(value, dict):
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
