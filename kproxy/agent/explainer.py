"""Answer `kproxy explain` in the running agent: what is desired, from the objects and plans in memory.

The kernel is not read here but by the command, which pays for it. A question is answered on a thread of the
HTTP server, one at a time, so that questions cannot crowd out the syncs; it only reads.
"""

import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import parse_qs

import msgspec

from kproxy.addresses import Family
from kproxy.agent.loop import Agent
from kproxy.config.model import ProxyConfig
from kproxy.inspect.explain.desired import explain_desired
from kproxy.inspect.explain.policies import Enforcement, enforcement
from kproxy.inspect.explain.question import QuestionError, read_question
from kproxy.inspect.explain.report import Since
from kproxy.modes.base import ModeRegistry
from kproxy.modes.packet_walk import KernelRouting
from kproxy.node.facts import NodeFacts
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import ModeFacts, Routing
from kproxy.plan.planner import Planner
from kproxy.state.kinds import Kind
from kproxy.state.store import ObjectStore
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import EndpointSlice, Node
from kproxy.telemetry.http.server import Answer

if TYPE_CHECKING:
    from kproxy.agent.policy.agent import PolicyAgent
    from kproxy.plan.policy.describe import PodPolicies
    from kproxy.plan.policy.model import Judgement
    from kproxy.plan.policy.planner import PolicyPlanner

T = TypeVar("T")

_DIGITS = 18


class LivePolicies:
    """The plan of the policies that are enforced; see inspect.explain.policies.PolicyView."""

    def __init__(self, agent: "PolicyAgent") -> None:
        self._agent = agent

    def judge(
        self, protocol: Protocol, source_ip: str, destination_ip: str, port: int, *, from_node: bool = False
    ) -> "Judgement":
        """Whether a new connection is allowed, and why. Raises QuestionError."""
        return self._ask(
            lambda planner: planner.judge(protocol, source_ip, destination_ip, port, from_node=from_node)
        )

    def policies_of(self, pod: str) -> "PodPolicies | None":
        """What isolates a pod, and its addresses. Raises QuestionError."""
        found = self._ask(lambda planner: (planner.policies_of(pod),))
        return found[0]

    def pod_at(self, ip: str) -> str | None:
        """The key of the pod that has an address. Raises QuestionError."""
        found = self._ask(lambda planner: (planner.pod_at(ip),))
        return found[0]

    def _ask(self, question: "Callable[[PolicyPlanner], T]") -> T:
        found = self._agent.ask(question)
        if found is None:
            raise QuestionError("NetworkPolicies are being turned on or off; ask again")
        return found


class LiveCluster:
    """What the agent knows while one question is answered; see inspect.explain.cluster.Cluster."""

    def __init__(
        self,
        agent: Agent,
        store: ObjectStore,
        modes: ModeRegistry,
        facts: NodeFacts,
        routing: Routing,
        policies: "PolicyAgent | None" = None,
    ) -> None:
        self.facts = facts
        self.routing = routing
        self._agent = agent
        self._store = store
        self._modes = modes
        self._policies = policies

    @property
    def policies(self) -> Enforcement | None:
        """NetworkPolicies as they are enforced."""
        if self._policies is None:
            return None
        config = self._policies.config
        if not config.network_policy:
            return None
        return enforcement(
            LivePolicies(self._policies),
            reject=config.network_policy_reject,
            unknown=config.network_policy_unknown_pods,
            node=self.node,
        )

    @property
    def config(self) -> ProxyConfig:
        """The settings in force."""
        return self._agent.config

    @property
    def node(self) -> Node | None:
        """The object of the node."""
        return self._store.node()

    def planner(self, family: Family) -> Planner | None:
        """The plans of a family."""
        return self._agent.planner(family)

    def mode_facts(self, family: Family) -> ModeFacts:
        """The behaviour of the mode in a family."""
        config = self.config
        return self._modes.spec(config).explain_facts(config, family, self.facts.families[family])

    def service(self, key: str) -> ServiceInput:
        """A service and its slices."""
        return self._store.read(key)

    def slices(self) -> Iterable[EndpointSlice]:
        """Every EndpointSlice."""
        objects = self._store.objects(Kind.ENDPOINT_SLICE).values()
        return cast("Iterable[EndpointSlice]", objects)

    def since(self, key: str, family: Family) -> Since | None:
        """When the last change of a service arrived and was applied."""
        waits = self._store.waits_since(key)
        if waits is not None:
            return Since(datetime.fromtimestamp(time.time() - time.monotonic() + waits, UTC), None)
        last = self._agent.changes.latest(key, family)
        return None if last is None else Since(last.arrived or last.taken, last.applied, last.revision)


class Explainer:
    """The handlers of /explain and /changes; they may be called from any thread."""

    def __init__(
        self,
        agent: Agent,
        store: ObjectStore,
        modes: ModeRegistry,
        policies: "Callable[[], PolicyAgent | None]" = lambda: None,
    ) -> None:
        self._policies = policies
        self._agent = agent
        self._store = store
        self._modes = modes
        self._lock = threading.Lock()

    def answer(self, query: str) -> Answer:
        """Answer `src=...&proto=...&dst=...` with a report, or with 400 and the reason."""
        facts = self._agent.facts
        if facts is None:
            return _refused("the first lists are not complete yet", HTTPStatus.SERVICE_UNAVAILABLE)
        asked = parse_qs(query, max_num_fields=8)
        try:
            question = read_question(*(asked.get(name, [""])[0] for name in ("src", "proto", "dst")))
            with self._lock:
                cluster = LiveCluster(
                    self._agent, self._store, self._modes, facts, KernelRouting(), self._policies()
                )
                report = explain_desired(question, cluster)
        except (QuestionError, ValueError) as error:
            return _refused(str(error), HTTPStatus.BAD_REQUEST)
        return Answer(report.json(), "application/json")

    def service_at(self, ip: str, port: int, protocol: str) -> str | None:
        """The Service that has an address and port, or that node port; None if none has."""
        planner = self._agent.planner(Family.IPV6 if ":" in ip else Family.IPV4)
        if planner is None:
            return None
        return planner.owner((ip, port, protocol)) or planner.owner(("", port, protocol))

    def changes(self, query: str) -> Answer:
        """Answer `after=N&service=NS/SVC`, both optional, with the changes after number N."""
        asked = parse_qs(query, max_num_fields=8)
        after = asked.get("after", ["0"])[0]
        if not (after.isascii() and after.isdigit() and len(after) < _DIGITS):
            return _refused("after: not a number", HTTPStatus.BAD_REQUEST)
        service = asked.get("service")
        found = self._agent.changes.after(int(after), service[0] if service else None)
        return Answer(msgspec.json.encode(found), "application/json")


def _refused(reason: str, status: HTTPStatus) -> Answer:
    return Answer(f"{reason}\n".encode(), status=status)
