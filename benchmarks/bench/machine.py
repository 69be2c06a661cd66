"""The properties of the machine and of the source tree on which figures depend.

They are facts without names: no host name, no user, no path.
"""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The source tree."""

_TOOLS = {
    "iptables-nft": "iptables-nft",
    "iptables-legacy": "iptables-legacy",
    "nft": "nft",
    "ipset": "ipset",
    "ipvsadm": "ipvsadm",
}
_PASSING = frozenset({"load"})
"""Properties that two runs on one machine do not share."""


def machine() -> dict[str, Any]:
    """Return the properties of the machine on which the figures depend."""
    memory = Path("/proc/meminfo").read_text().split()[1]
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tools": {name: version for name, program in _TOOLS.items() if (version := _version(program))},
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `property: old value, new value` of each that differs, the load of the machine left out."""
    flat_old, flat_new = _flat(old), _flat(new)
    return [
        f"{name}: {flat_old.get(name, 'none')}, {flat_new.get(name, 'none')}"
        for name in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(name) != flat_new.get(name)
    ]


def source(root: Path = ROOT) -> dict[str, Any]:
    """Return which program this is.

    `source` is a digest of the product's modules: equal for two commits that differ elsewhere only. `commit`
    is the last that changed the product, None outside a git tree. `changed` says whether the product differs
    from it.
    """
    digest = hashlib.sha256()
    for file in sorted((root / "kproxy").rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return {
        "commit": product_commit("HEAD", root),
        "changed": bool(_git(root, "status", "--porcelain", "--", "kproxy")),
        "source": digest.hexdigest()[:16],
    }


def product_commit(name: str, root: Path = ROOT) -> str | None:
    """Return the last commit up to a named one that changed the product; None if there is none."""
    return _git(root, "log", "-1", "--format=%H", "--end-of-options", name, "--", "kproxy") or None


def _flat(properties: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in properties.items() if name not in _PASSING}
    tools = found.pop("tools", {})
    return found | {f"tools.{name}": version for name, version in tools.items()}


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    found = re.search(r"\bv?(\d+(?:\.\d+)+)", done.stdout)
    return found[1] if found else ""


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
