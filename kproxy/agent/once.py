"""The timeout of `kproxy run --once`, and the reasons for it."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.state.kinds import KINDS, Kind
from kproxy.telemetry.status import Watch


class OnceTimeout(RuntimeError):
    """No sync succeeded in time; the message names the missing lists, data or syncs."""

    def __init__(self, seconds: float, waits_for: Sequence[str]) -> None:
        super().__init__(f"--timeout: not done within {seconds:g} s, waiting for {'; '.join(waits_for)}")


def waits_for(
    missing: Collection[Kind],
    watches: Sequence[Watch],
    errors: Mapping[Family, str],
    *,
    knows_node: bool,
    policies: tuple[str | None, Mapping[Family, str]] = (None, {}),
) -> list[str]:
    """List what a complete sync waits for: `missing` lists, the node's data, or a sync without `errors`.

    `policies`: what the first sync of policies waits for, and their errors.
    """
    found = list(_waits_for(missing, watches, errors, knows_node=knows_node))
    lists, failures = policies
    found += [] if lists is None else [f"{lists} (for NetworkPolicies)"]
    found += [f"{family.value} policies to be written ({error})" for family, error in failures.items()]
    return found or ["a first sync"]


def _waits_for(
    missing: Collection[Kind], watches: Sequence[Watch], errors: Mapping[Family, str], *, knows_node: bool
) -> Iterator[str]:
    reasons = {watch.kind: watch.last_error for watch in watches}
    for kind in (kind for kind in KINDS if kind in missing):
        reason = reasons.get(kind.name)
        only = " (this one's alone)" if kind.own_node else ""
        yield f"the list of {kind}s{only}" + (f" ({reason})" if reason else "")
    if not missing and not knows_node:
        yield "the node's pod CIDRs (spec.podCIDRs of its Node object)"
    for family, error in errors.items():
        yield f"{family.value} rules to be written ({error})"
