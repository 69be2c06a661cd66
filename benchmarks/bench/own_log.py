"""What kproxy's log says about its syncs; a peer's log says nothing here."""

import re
from typing import Final

_SYNCED: Final = re.compile(r"event=synced family=IPv4 .*?plan_ms=([\d.]+) apply_ms=([\d.]+)(.*)")


def phases(log: str) -> dict[str, float] | None:
    """Kproxy's own split of its syncs so far, milliseconds each; None for a program that does not say."""
    found = _SYNCED.findall(log)
    if not found:
        return None
    return {
        "plan": sum(float(plan) for plan, _, _ in found) / len(found),
        "apply": sum(float(apply) for _, apply, _ in found) / len(found),
    }


def rules_written(log: str) -> int | None:
    """How many rules kproxy wrote since its start; None for a program that does not say."""
    if "event=synced" not in log:
        return None
    return sum(int(n) for _, _, rest in _SYNCED.findall(log) for n in re.findall(r"\brules=(\d+)", rest))
