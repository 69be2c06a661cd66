"""Warn of a kube-proxy that runs beside kproxy: each overwrites the other's rules.

It is detected by its process, which a container cannot see, or by the answer at its metrics port.
"""

import http.client
from pathlib import Path

import structlog

log = structlog.stdlib.get_logger(__name__)

METRICS_PORT = 10249
"""The default port at which kube-proxy answers /proxyMode."""
_MODES = {b"iptables", b"ipvs", b"nftables"}
_PATIENCE = 0.5
"""Seconds to wait for an answer from this host."""


def warn_of_kube_proxy(*, ask: bool) -> None:
    """Warn if one runs in this network namespace; `ask`: query its port too, unless it is kproxy's."""
    pids = _processes()
    mode = _mode_at_port() if ask else None
    if not pids and mode is None:
        return
    found: dict[str, object] = {"pids": pids} if pids else {}
    if mode is not None:
        found["answers"] = f"127.0.0.1:{METRICS_PORT}/proxyMode says {mode}"
    log.warning(
        "kube_proxy_running",
        **found,
        effect="two proxies on a node undo each other's rules",
        remedy="let kube-proxy run on other nodes only: manifests/MIGRATION.md",
    )


def _processes(proc: Path = Path("/proc")) -> list[int]:
    """The process ids of every visible kube-proxy in this network namespace."""
    found = []
    try:
        own = (proc / "self/ns/net").stat().st_ino
        candidates = [each for each in proc.iterdir() if each.name.isdecimal()]
    except OSError:
        return []
    for each in candidates:
        try:
            if (each / "comm").read_text(errors="replace").strip() != "kube-proxy":
                continue
            if (each / "ns/net").stat().st_ino == own:
                found.append(int(each.name))
        except OSError:
            continue  # it has ended, or may not be inspected
    return sorted(found)


def _mode_at_port() -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=_PATIENCE)
    try:
        connection.request("GET", "/proxyMode")
        answer = connection.getresponse().read(16)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return answer.decode() if answer in _MODES else None
