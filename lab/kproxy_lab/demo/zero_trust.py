"""The scene of NetworkPolicies: the same connections before kproxy enforces policies and after.

The policies are in the API all the while. A cluster whose network does not enforce them takes them without a
word, which is how kproxy begins; then it is started again with --network-policy.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from kproxy.addresses import Family
from kproxy_lab.demo.examples import Examples, Json, shown
from kproxy_lab.demo.expect import listeners
from kproxy_lab.demo.program import ProgramDiedError, output, start_module
from kproxy_lab.demo.screen import Screen
from kproxy_lab.demo.stage import FIRST_SYNC_SECONDS, SPEC, Stage
from kproxy_lab.demo.walk import INTERNET_PORT, Step, Walk, Walked, compare, is_of, load_walk, named_wrong
from kproxy_lab.lab import Pod
from kproxy_lab.lab.clients import tally

FLAG: Final = "--network-policy"
ASKS: Final = 4
ANSWER_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 0.3
ATTEMPTS: Final = 20
"""Requests until a new service answers."""
READINGS: Final = 4
"""Readings of refused connections until all are named."""


def show(screen: Screen, stage: Stage, examples: Examples) -> list[Walked]:
    """Walk through the shop twice; return what was seen. Empty if there is no walk beside the examples."""
    walk = load_walk(examples.directory, stage.lab.pods, SPEC.client_ip4[0])
    if walk is None:
        return []
    screen.section(
        "A zero-trust walk: NetworkPolicies",
        f"The policies of {shown(walk.objects.directory)} are in the API: nothing may go in or out of the "
        "namespace shop, but from the ingress controller to the frontend, to the backend, to the database, "
        "and to DNS. Many networks take such objects and enforce nothing, and so does kproxy without a flag. "
        f"Then it is started again with {FLAG}, and every connection is tried once more.",
    )
    with screen.busy("opening the shop"):
        _set_up(stage, walk)
        before = {step: _ask(stage, walk, step, enforced=False) for step in walk.steps}
    try:
        with screen.step(f"starting kproxy run {FLAG}", f"kproxy run {FLAG}: both families in force"):
            stage.restart("policy_synced", FLAG)
    except ProgramDiedError as error:
        refusal = next((line for line in error.tail if line.startswith(f"Error: {FLAG}: ")), None)
        if refusal is None:
            raise
        screen.say(f"That cannot be shown here. {refusal}", style="yellow")
        stage.restart("iptables_found")
        return []
    with screen.busy("walking"):
        now = {step: _ask(stage, walk, step, enforced=True) for step in walk.steps}
        named = _named(stage, walk, [step for step in walk.steps if step.refused is not None])
    walked = [_walked(step, before[step], now[step], named.get(step, [])) for step in walk.steps]
    screen.console.print()
    screen.walk_columns("not enforced", "enforced")
    for each in walked:
        screen.walk(each)
    return walked


def _walked(step: Step, before: Counter[str], now: Counter[str], named: Sequence[Json]) -> Walked:
    wrong = (
        *(f"not enforced: {each}" for each in compare(step, before, enforced=False)),
        *(f"enforced: {each}" for each in compare(step, now, enforced=True)),
        *named_wrong(step, named),
    )
    return Walked(step, before, now, tuple(dict.fromkeys(each["detail"] for each in named)), wrong)


def _set_up(stage: Stage, walk: Walk) -> None:
    """Serve, publish, and wait until the services of the walk answer."""
    for each in listeners(walk.objects, stage.lab.pods):
        stage.lab.serve(each.pod, each.protocol, each.port)
    outside = Pod(
        "internet", SPEC.client_ip4[0], SPEC.client_ip6[0], "", local=False, namespace=stage.lab.client
    )
    stage.lab.serve(outside, "TCP", INTERNET_PORT)
    written = time.time()
    stage.api.apply_many((*walk.objects.objects, *walk.policies))
    stage.program.wait_for("synced", FIRST_SYNC_SECONDS, since=written, family=Family.IPV4.value)
    for step in walk.steps:
        for _ in range(ATTEMPTS):
            if not compare(step, _ask(stage, walk, step, enforced=False), enforced=False):
                break


def _ask(stage: Stage, walk: Walk, step: Step, *, enforced: bool) -> Counter[str]:
    """Try a connection some times at once; names of pods that answered, or of errors."""
    stage.program.check()
    silent = enforced and step.refused is not None
    timeout = SILENT_SECONDS if silent else ANSWER_SECONDS
    source = walk.pods[step.source]
    return tally(stage.lab.ask_each(source, step.ip, step.port, ASKS, step.protocol, timeout=timeout))


def _named(stage: Stage, walk: Walk, steps: Sequence[Step]) -> dict[Step, list[Json]]:
    """What `kproxy drops` says about each of these connections."""
    found: dict[Step, list[Json]] = {}
    for _ in range(READINGS):
        stage.program.check()
        refused = _refused(stage)
        found = {step: [each for each in refused if is_of(each, step, walk)] for step in steps}
        if all(found.values()):
            break
    return found


def _refused(stage: Stage) -> list[Json]:
    """The refused connections of the last minutes, one JSON object a line; none if the command fails."""
    process = start_module(stage.lab.node, "kproxy", "drops", "-o", "json")
    with output(process) as stream:
        lines = stream.read().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")] if process.wait() == 0 else []
