"""The stage of the demo: lab, API server, serving pods and kproxy on its node, and their removal."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from kproxy.addresses import Family
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import XtablesTools
from kproxy.kernel.xtables.types import Variant
from kproxy_lab.apiserver import ApiError, ApiServer
from kproxy_lab.demo.compare import Finding, compare
from kproxy_lab.demo.examples import Examples, UnusableExamplesError, shown
from kproxy_lab.demo.expect import Asker, Listener, Question
from kproxy_lab.demo.interruption import Interruption
from kproxy_lab.demo.program import Program
from kproxy_lab.lab import Lab, LabSpec, Namespace, Pod
from kproxy_lab.lab.topology import NODE

CLUSTER_CIDR: Final = "10.244.0.0/16,fd00:10:244::/48"
SPEC: Final = LabSpec(local_pods=6, remote_pods=3)
FIRST_SYNC_SECONDS: Final = 30.0
ASKS: Final = 200
REFUSED_ASKS: Final = 20
SILENT_ASKS: Final = 4
SILENT_SECONDS: Final = 0.3
CLIENTS: Final = 12


class Stage:
    """Owns the parts of the demo and removes them at the end of the block; a context manager.

    The parts come up one by one with `build()`, `serve()`, `publish()` and `start()`, in this order.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption
        self._cleanup = ExitStack()
        self.lab: Lab
        self.api: ApiServer
        self.program: Program
        self.asker: Pod
        self.endpoint: Pod | None = None
        self._arguments: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def build(self) -> None:
        """Make the namespaces. Raises NotSupportedError."""
        self.interruption.check()
        self.lab = self._cleanup.enter_context(Lab(SPEC))
        self.node_addresses = frozenset((*NODE.ip4, *NODE.ip6, *NODE.gateways))

    def serve(self, listeners: Sequence[Listener]) -> None:
        """Start the servers, and select the pods that send requests: an idle one and a serving one."""
        for each in listeners:
            self.interruption.check()
            self.lab.serve(each.pod, each.protocol, each.port)
        serving = {each.pod.name for each in listeners}
        idle = [pod for pod in self.lab.local_pods if pod.name not in serving]
        busy = [pod for pod in self.lab.local_pods if pod.name in serving]
        self.asker = idle[0] if idle else self.lab.local_pods[-1]
        self.endpoint = busy[0] if busy else None

    def publish(self, examples: Examples) -> None:
        """Start the API server on the node's loopback and apply the objects. Raises UnusableExamplesError."""
        self.interruption.check()
        self.api = ApiServer(sockets=self.lab.node.listen)
        self._cleanup.callback(self.api.stop)
        self.api.start()
        try:
            self.api.apply_many(examples.objects)
        except (ApiError, KeyError) as error:
            raise UnusableExamplesError(
                f"the API server refuses {shown(examples.directory)}: {error}"
            ) from error

    def start(self, variant: str | None) -> None:
        """Run kproxy until its first sync of both families. Raises ProgramDiedError, ProgramSilentError."""
        self.interruption.check()
        directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="kproxy-demo-")))
        kubeconfig = self.api.kubeconfig(directory / "kubeconfig")
        arguments = ["--kubeconfig", str(kubeconfig), "--hostname-override", SPEC.node_name]
        arguments += ["--cluster-cidr", CLUSTER_CIDR]
        if variant is not None:
            arguments += ["--iptables-variant", variant]
        self._arguments = arguments
        self._run("synced")

    def restart(self, awaited: str, *more: str) -> None:
        """End kproxy, run it with more arguments, and wait for an event of both families in its log.

        Raises as `start` does. A sync that has nothing to write is not logged: the rules stayed in place.
        """
        self.interruption.check()
        self.program.stop()
        self._run(awaited, *more)

    def _run(self, awaited: str, *more: str) -> None:
        self.program = Program(self.lab.node, [*self._arguments, *more], self.interruption)
        self._cleanup.callback(self.program.stop)
        for family in Family:
            self.program.wait_for(awaited, FIRST_SYNC_SECONDS, family=family.value)

    def ask(self, question: Question) -> Finding:
        """Send as many requests as the shares need, and compare the outcomes."""
        self.program.check()
        n, timeout = (ASKS, 2.0) if question.answers else (REFUSED_ASKS, 2.0)
        if not question.answers and question.otherwise == "NoAnswer":
            n, timeout = SILENT_ASKS, SILENT_SECONDS
        outcomes = self.lab.ask_each(
            self.namespace(question.asker),
            question.ip,
            question.port,
            n,
            question.protocol,
            source_ips=SPEC.client_ip4[:CLIENTS] if question.asker is Asker.CLIENTS else (),
            timeout=timeout,
        )
        return compare(question, outcomes, self.node_addresses)

    def namespace(self, asker: Asker) -> Namespace:
        """Return the namespace of an asker."""
        match asker:
            case Asker.NODE:
                return self.lab.node
            case Asker.CLIENT | Asker.CLIENTS:
                return self.lab.client
            case Asker.ENDPOINT:
                return (self.endpoint or self.asker).namespace
            case Asker.POD:
                return self.asker.namespace

    def name(self, asker: Asker) -> str:
        """Return the name of an asker on the screen."""
        match asker:
            case Asker.NODE:
                return SPEC.node_name
            case Asker.CLIENT:
                return "client"
            case Asker.CLIENTS:
                return f"{CLIENTS} clients"
            case Asker.ENDPOINT:
                return f"pod {(self.endpoint or self.asker).name}"
            case Asker.POD:
                return f"pod {self.asker.name}"

    def tools(self, family: Family = Family.IPV4) -> XtablesTools:
        """The iptables programs that kproxy says it uses."""
        line = self.program.wait_for("iptables_found", FIRST_SYNC_SECONDS, family=family.value)
        return find_tools(family, Variant(line.fields["variant"]), probe=False)

    def rules(self, family: Family = Family.IPV4) -> list[str]:
        """The nat and filter rules of the node, as iptables-save prints them."""
        saved = self.lab.node.run([self.tools(family).save]).stdout
        return [line for line in saved.splitlines() if line.startswith("-A ")]
