"""Render a ServicePlan into its rules, each in exactly the form in which iptables-save prints it.

So desired rules, applied rules and the kernel's dump can be compared as text. Both variants of iptables 1.8
print the same bytes for every rule here. The semantics are kube-proxy's (pkg/proxy/iptables/proxier.go,
1.36).
"""

from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.port_rules import Lines, PortRenderer
from kproxy.backends.iptables.rules import ServiceRules
from kproxy.plan.model import EndpointPlan, PortPlan, ServicePlan


def render_service(
    plan: ServicePlan, config: IptablesConfig, *, comments: bool = True, compact: bool = False
) -> ServiceRules:
    """Render one service. `comments` off leaves them out of endpoint rules, as in a large cluster.

    `compact` is the scalable layout's form, in which endpoints have no chains.
    """
    lines = Lines()
    renderer = _CompactPortRenderer if compact else PortRenderer
    for port in plan.ports:
        renderer(port, config, lines, comments=comments).render()
    return lines.finish()


def cluster_policy_chains(
    port: PortPlan, config: IptablesConfig, *, comments: bool = True
) -> tuple[str, dict[str, str]]:
    """Return the name of the chain that balances over all endpoints, and the chains that it needs."""
    lines = Lines()
    renderer = PortRenderer(port, config, lines, comments=comments)
    renderer.spread_over_all()
    return renderer.svc, lines.chains


class _CompactPortRenderer(PortRenderer):
    """Renders one service port without chains for endpoints: its own chains translate.

    Hairpin traffic is detected by its addresses after translation: see hairpin.py.
    """

    def _endpoint_names(self) -> dict[str, str]:
        """Names only with affinity, which needs a list per endpoint; that saves six of seven digests."""
        return super()._endpoint_names() if self.port.affinity_seconds is not None else {}

    def _masquerade_comment(self) -> str:
        """Empty in a large cluster: it doubles the rule's size, and iptables-legacy copies all rules."""
        return super()._masquerade_comment() if self.comments else ""

    def _remembered(self, endpoint: EndpointPlan, seconds: int) -> str:
        recent = f"-m recent --update --seconds {seconds} --reap --name {self.sep[endpoint.address_port]} "
        return self._translation(endpoint, f"{recent}--mask {self._recent_mask} --rsource ")

    def _chosen(self, endpoint: EndpointPlan, share: str) -> str:
        recent = ""
        if self.port.affinity_seconds is not None:
            chain = self.sep[endpoint.address_port]
            recent = f"-m recent --set --name {chain} --mask {self._recent_mask} --rsource "
        return self._translation(endpoint, share + recent)

    def _endpoint_chain(self, endpoint: EndpointPlan) -> None:
        """Render nothing: endpoints have no chains."""

    def _translation(self, endpoint: EndpointPlan, match: str) -> str:
        comment = self._to_endpoint(endpoint)
        return f"-p {self.proto} {comment}{match}-j DNAT --to-destination {endpoint.address_port}\n"
