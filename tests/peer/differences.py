"""Allowed differences of outcomes: deliberate ones of kproxy, and those of old versions of kube-proxy.

Every entry names its reason; nothing else may differ. A probe that an entry applies to is not compared.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.peer.contenders import NEWEST, Contender, Version
from tests.peer.objects import JSON
from tests.peer.probes import Outcome, Probe

ANY: Outcome = frozenset({"whatever"})
"""Stands for every outcome in `Difference.ends`."""
IDLE = "idle"
"""A service without endpoints: in kube-proxy's rules it does not claim addresses of other services."""


class View:
    """The services at one step, for the predicates of the tables below."""

    def __init__(self, services: Sequence[JSON]) -> None:
        self._specs: Mapping[str, JSON] = {s["metadata"]["name"]: s["spec"] for s in services}
        claims = Counter(
            claim
            for service in services
            if service["metadata"]["name"] != IDLE
            for claim in {
                (ip, p["port"], p.get("protocol", "TCP"))
                for ip in _addresses(service)
                for p in service["spec"].get("ports") or ()
            }
        )
        self._contested = {claim for claim, number in claims.items() if number > 1}

    @property
    def any_contested(self) -> bool:
        """Whether several services have the same address and port."""
        return bool(self._contested)

    def contested(self, probe: Probe) -> bool:
        """Whether several services that can answer have the address and port."""
        return (probe.ip, probe.port, probe.protocol) in self._contested

    def external_local(self, probe: Probe) -> bool:
        """Whether the probe meets externalTrafficPolicy Local."""
        return (
            probe.frontend != "cluster" and self._specs[probe.service].get("externalTrafficPolicy") == "Local"
        )

    def kind(self, probe: Probe) -> str:
        """The type of the service."""
        return str(self._specs[probe.service].get("type", "ClusterIP"))


@dataclass(frozen=True, slots=True)
class Difference:
    """`before`: the first version of kube-proxy that no longer differs.

    `documented`: the heading of the section that documents it.
    """

    reason: str
    applies: Callable[[Probe, View], bool]
    contenders: str = "kproxy"
    """The beginning of the names of the contenders that differ."""
    before: Version = NEWEST
    documented: str = ""
    ends: tuple[Outcome, Outcome] | None = None
    """Only where kube-proxy's requests end in some of the first ways, and the contender's in the second."""


DELIBERATE = (
    Difference(
        "kube-proxy's rules for one address stand in random order; kproxy knows whose it is",
        lambda probe, view: view.contested(probe),
        contenders="k",
        documented="What it does that kube-proxy does not",
    ),
    Difference(
        "kube-proxy goes on using a slice for the service that it once named",
        lambda probe, _: probe.service == "left",
        contenders="kproxy",
        documented="What it does that kube-proxy does not",
        ends=(ANY, frozenset({"Refused"})),
    ),
    Difference(
        "as in kube-proxy's own nftables mode, node ports do not answer on 127.0.0.1",
        lambda probe, _: probe.frontend == "localhost",
        contenders="kproxy nftables",
        documented="nftables mode",
    ),
    Difference(
        "the hairpin set holds endpoints that may be on this node; a pod elsewhere asks its own node",
        lambda probe, _: probe.vantage.startswith("remote"),
        contenders="kproxy nftables",
        documented="nftables mode",
    ),
    Difference(
        "the node itself is refused when it sends, outside addresses included, and not on the way in",
        lambda probe, _: probe.vantage == "node" and probe.frontend != "cluster",
        contenders="kproxy nftables",
        documented="nftables mode",
        ends=(frozenset({"NoAnswer", "Refused"}), frozenset({"Refused", "Unreachable"})),
    ),
)
"""Deliberate differences of kproxy, which its documentation lists."""

AGED = (
    Difference(
        "what is to be dropped was only marked, and the mark dropped on the way in alone (KEP-3178)",
        lambda probe, view: probe.frontend in {"external", "balancer"},
        before=(1, 25),
        ends=(frozenset({"Unreachable"}), frozenset({"NoAnswer"})),
    ),
    Difference(
        "externalTrafficPolicy did not count for external IPs of type ClusterIP",
        lambda probe, view: view.external_local(probe) and view.kind(probe) == "ClusterIP",
        before=(1, 25),
    ),
    Difference(
        "up to 1.21, rules for external IPs do not match what the node itself sends",
        lambda probe, _: probe.frontend == "external" and probe.vantage == "node",
        before=(1, 22),
    ),
    Difference(
        "node ports also translate what the node sends to ::1, which then goes nowhere",
        lambda probe, _: probe.frontend == "localhost" and probe.family == 6,
        before=(1, 25),
    ),
)
"""Differences of older versions of kube-proxy."""


def excused(
    probe: Probe,
    view: View,
    contender: Contender,
    version: Version,
    ends: tuple[Outcome, Outcome] | None = None,
) -> str:
    """Return why a contender may differ from the reference, "" if it may not; `ends`: the two outcomes."""
    for known in (*DELIBERATE, *AGED):
        concerned = str(contender).startswith(known.contenders) and version < known.before
        if concerned and _ends_match(known, ends) and known.applies(probe, view):
            return known.reason
    return ""


def _ends_match(known: Difference, ends: tuple[Outcome, Outcome] | None) -> bool:
    if known.ends is None:
        return True
    if ends is None:
        return False
    return all(allowed is ANY or found <= allowed for allowed, found in zip(known.ends, ends, strict=True))


def _addresses(service: JSON) -> list[str]:
    spec = service["spec"]
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()
    every = [*(spec.get("clusterIPs") or ()), *(spec.get("externalIPs") or ())]
    return [ip for ip in every if ip not in {"", "None"}] + [e["ip"] for e in ingress if e.get("ip")]
