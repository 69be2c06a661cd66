"""The parts of the demo in the order in which they are shown, and the count of expectations."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kproxy.addresses import Family
from kproxy.kernel.xtables.types import Variant
from kproxy_lab.demo import changes, offline
from kproxy_lab.demo import zero_trust as walk
from kproxy_lab.demo.changes import Subject
from kproxy_lab.demo.examples import Examples, key, shown
from kproxy_lab.demo.expect import Topic, listeners, topics
from kproxy_lab.demo.screen import Screen
from kproxy_lab.demo.stage import ASKS, SPEC, Stage
from kproxy_lab.lab import AskError, HeldConnection
from kproxy_lab.lab.topology import BRIDGE

OTHER: Final = {Variant.NFT: Variant.LEGACY, Variant.LEGACY: Variant.NFT}


class Expectations:
    """The checked expectations: their number, and a sentence for each that did not hold."""

    def __init__(self) -> None:
        self.count = 0
        self.broken: list[str] = []

    def note(self, expectation: str, wrong: Sequence[str]) -> None:
        """One more; it held if nothing was `wrong`."""
        self.count += 1
        if wrong:
            self.broken.append(f"{expectation}: {'; '.join(wrong)}")


def come_up(screen: Screen, stage: Stage, examples: Examples, variant: str | None) -> list[Topic]:
    """Lab, API server and kproxy, one after the other. Raises what `Stage` raises."""
    screen.section("kproxy: from the Kubernetes API to packets that arrive")
    with screen.step(
        "building the network lab",
        f"network lab: {SPEC.node_name} with bridge {BRIDGE} and {SPEC.local_pods} pods, "
        f"{SPEC.peer_name} with {SPEC.remote_pods} pods, a client outside",
    ):
        stage.build()
    found = topics(examples, stage.lab.pods)
    with screen.step(
        "starting the API server",
        f"embedded API server with {len(found)} services from {shown(examples.directory)}",
    ):
        stage.serve(listeners(examples, stage.lab.pods))
        stage.publish(examples)
    with screen.step(
        "starting kproxy run", f"kproxy run on {SPEC.node_name}, by kubeconfig: both families synced"
    ):
        stage.start(variant)
    tools = stage.tools()
    chosen = "as asked" if variant else f"found out; --iptables-variant {OTHER[tools.variant]} for the other"
    version = ".".join(map(str, tools.version))
    screen.say(f"iptables {version}, variant {tools.variant} ({chosen})", style="dim", indent=4)
    return found


def addresses(screen: Screen, stage: Stage, found: Sequence[Topic], expectations: Expectations) -> None:
    """Ask every address of every service, and show who answered."""
    screen.section(
        "Who answers",
        f"Every address of every service is asked {ASKS} times. The bars are the shares of the pods that "
        f"answered; local-* run on {SPEC.node_name}, remote-* on {SPEC.peer_name}. Last, whose address the "
        "pods saw: the client's own, or the node's in its place. The mark says whether all of that is what "
        "Kubernetes promises.",
    )
    names = {name for topic in found for question in topic.questions for name in question.answers}
    screen.columns([pod.name for pod in stage.lab.pods if pod.name in names])
    for topic in found:
        if topic.not_proxied is not None:
            continue
        with screen.busy(f"asking {topic.service}"):
            rows = [(stage.name(question.asker), stage.ask(question)) for question in topic.questions]
        for asker, finding in rows:
            asked = finding.question
            expectations.note(f"{topic.service}, {asked.kind} {asked.address} from {asker}", finding.wrong)
        screen.topic(topic, rows)
    screen.console.print()
    rules = [rule for family in Family for rule in stage.rules(family)]
    for topic in found:
        if topic.not_proxied is not None:
            mention = re.compile(rf"\b{re.escape(topic.service)}[:\s\"]")
            wrong = [f"there is a rule: {rule}" for rule in rules if mention.search(rule)][:1]
            expectations.note(f"{topic.service} has no rules", wrong)
            screen.not_proxied(topic, topic.not_proxied, wrong=wrong)


def change(screen: Screen, stage: Stage, examples: Examples, expectations: Expectations) -> None:
    """Scale up, lose and regain readiness, scale down, while connections stay open."""
    about = changes.subject(examples, stage.lab.pods)
    if about is None:
        return
    screen.section(
        f"What a change takes: {key(about.service)}",
        "Milliseconds from the write to the API until the first packet that obeyed it, and until kproxy "
        "logged `synced` (the rules are in the kernel a little earlier). A pod asks without pause; an "
        "endpoint counts as gone at the first request after its last answer, once "
        f"{changes.SETTLED} more requests have not reached it. Behind the {screen.glyphs.blur}: the time of "
        "as many requests as there are pods, as chance decides which of them meets the one that matters.",
    )
    _serve_newcomer(stage, examples, about)
    columns = [pod.name for pod in (*about.pods, about.newcomer)]
    screen.change_columns(columns)
    answering = {pod.name for pod in about.pods}
    held = changes.hold(stage, about, about.pods)
    lines, wrong = len(held), []
    for each in changes.planned(about):
        answering = answering | {each.pod.name} if each.comes else answering - {each.pod.name}
        expected = [name for name in columns if name in answering]
        with screen.busy(each.title):
            measured = changes.measure(stage, examples, about, each, expected)
        expectations.note(each.title, measured.wrong)
        screen.change(measured, expected)
        if each.comes and each.pod == about.newcomer:
            held += changes.hold(stage, about, [about.newcomer])
        said, broken = _exchange(held, each.title)
        lines += said
        wrong += broken
    if {name for name, _ in held} != set(columns):
        wrong.append("not every pod was met by a connection")
    expectations.note("established connections stay", wrong)
    screen.console.print()
    screen.fact(
        f"{len(held)} connections, one to each pod, stayed open all the while: {lines} lines, "
        "each answered by the same pod",
        wrong=wrong,
    )


def rules(screen: Screen, stage: Stage) -> None:
    """The chains of one service as they are in the kernel."""
    screen.section("What is in the kernel")
    port, excerpt = offline.of_one_service(stage.rules())
    if excerpt:
        screen.verbatim(f"# {Path(stage.tools().save).name} -t nat | grep '{port}[\" ]'", style="bold")
        for rule in excerpt:
            screen.verbatim(rule)


def zero_trust(screen: Screen, stage: Stage, examples: Examples, expectations: Expectations) -> None:
    """NetworkPolicies: what is allowed passes, and what is not is refused and named."""
    for each in walk.show(screen, stage, examples):
        expectations.note(each.step.title, each.wrong)


def where_next(screen: Screen, examples: Examples) -> None:
    """What to try next."""
    screen.section("Where to look next")
    for command, what in (
        (offline.render_command(examples.directory), "every rule, without root"),
        ("kproxy demo --keep", "keep the lab running and try things in it by hand"),
        (
            "kproxy demo --manifests DIR",
            f"your own services; begin with a copy of {shown(examples.directory)}",
        ),
        ("kproxy drops, kproxy policies POD", "on a node with --network-policy: who was refused, and why"),
        ("kproxy run --help", "the settings, which have kube-proxy's names"),
    ):
        screen.verbatim(command, style="bold")
        screen.say(what, style="dim", indent=6)


def verdict(screen: Screen, expectations: Expectations) -> None:
    """Whether all went as Kubernetes says it should, or what did not."""
    screen.console.print()
    if not expectations.broken:
        screen.say(f"{screen.glyphs.held} All {expectations.count} expectations held.", style="bold green")
        return
    count = len(expectations.broken)
    screen.say(f"{count} of {expectations.count} expectations did not hold:", style="bold red")
    screen.wrong(expectations.broken)


def stay(screen: Screen, stage: Stage) -> None:
    """Keep the lab running until a signal arrives. Raises Interrupted, ProgramDiedError."""
    screen.section("The lab stays until Ctrl-C", "From another terminal, for instance:")
    node, pod = stage.lab.node.path, stage.asker.namespace.path
    screen.verbatim(f"nsenter --net={node} {Path(stage.tools().save).name} -t nat")
    screen.verbatim(f"nsenter --net={node} curl {stage.api.url}/api/v1/services")
    screen.verbatim(f"nsenter --net={node} curl http://127.0.0.1:10256/healthz")
    screen.verbatim(f"nsenter --net={pod} python3 -m kproxy_lab.demo.asker 10.96.0.80 80")
    stage.interruption.wait_for(lambda: stage.program.ended)
    stage.program.check()


def _serve_newcomer(stage: Stage, examples: Examples, about: Subject) -> None:
    """The pod that joins listens before it is in any slice, as a pod that turns ready does."""
    served = {(each.pod.name, each.port) for each in listeners(examples, stage.lab.pods)}
    alone = Examples(examples.directory, (about.service, *examples.slices(about.service)))
    for port in {each.port for each in listeners(alone, stage.lab.pods)}:
        if (about.newcomer.name, port) not in served:
            stage.lab.serve(about.newcomer, "TCP", port)


def _exchange(held: Sequence[tuple[str, HeldConnection]], when: str) -> tuple[int, list[str]]:
    """A line over each connection: how many were answered, and what went wrong."""
    wrong = []
    for name, connection in held:
        try:
            answer = connection.exchange(when)
        except AskError as error:
            wrong.append(f"the connection to {name} broke at {when!r}: {error}")
            continue
        if answer.pod != name:
            wrong.append(f"the connection to {name} was answered by {answer.pod} at {when!r}")
    return len(held) - len(wrong), wrong
