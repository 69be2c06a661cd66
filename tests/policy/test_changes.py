"""Changes while new connections are tried without a pause: no allowed one is lost, no other gets through."""

import dataclasses
import itertools
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from kproxy_lab.apiserver import Fault
from kproxy_lab.lab import AskError
from kproxy_lab.lab.flows import FlowTester
from tests.faults.selection import EVERYTHING
from tests.packets.program import Kproxy
from tests.policy import objects, steady
from tests.policy.conftest import NFTABLES, ConfiguredWorld
from tests.policy.objects import JSON, Key, labels_in, pods_with, rule_from, spaces_with, spec
from tests.policy.stream import Stream, on_both_protocols, stream_tester
from tests.policy.world import World, parse
from tests.suite.matrix import SEED

pytestmark = pytest.mark.root

KILLS = 60 if EVERYTHING else 4
TABLE = "kproxy-policy"
LATER = "2026-03-01T00:00:00Z"


@pytest.fixture(scope="module")
def tester(world: World) -> Iterator[FlowTester]:
    with stream_tester(world) as made:
        yield made


@pytest.fixture
def enforced(world: World) -> World:
    """The world with the policies of `steady` in force."""
    world.show(steady.policies().values())
    world.check(parse(steady.FLOWS))
    return world


def closed_again(world: World, program: Kproxy) -> None:
    """Wait until every flow of `steady` goes as it must."""
    expected = parse(steady.FLOWS)
    flows = [world.flow(each) for each in expected]
    program.until(
        lambda: [each.open for each in world.tester.attempt(flows, quiet=0.02)],
        [each.open for each in expected],
    )


def test_changes_that_leave_a_verdict_leave_its_packets(enforced: World, tester: FlowTester) -> None:
    with Stream(enforced, tester, steady.flows()) as stream:
        for wanted in itertools.islice(steady.changes(enforced), 400 if EVERYTHING else 40):
            enforced.put(wanted)
    stream.check()


WEB = labels_in(app="web")
KINDS_OF_CHANGES = (
    "the policy",
    "the peer's labels",
    "the namespace's labels",
    "the subject's labels",
    "an heir of the peer's address",
)


def opening(world: World) -> dict[str, tuple[JSON, JSON]]:
    """What opens `shop/bare > shop/web` and closes it again, by the kind of change."""
    web, bare = world.pods["shop/web"], world.pods["shop/bare"]
    peers = [pods_with(app="api"), spaces_with(env="lab")]
    unlabelled = {"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}
    front = {"app": "web", "tier": "front"}
    return {
        "the policy": (
            objects.policy("shop/web", spec(WEB, ingress=[rule_from(*peers, unlabelled)])),
            objects.policy("shop/web", spec(WEB, ingress=[rule_from(*peers)])),
        ),
        "the peer's labels": (
            objects.pod("shop/bare", bare, {"app": "api"}, {}),
            objects.pod("shop/bare", bare, {}, {}),
        ),
        "the namespace's labels": (
            objects.namespace("shop", {"team": "a", "env": "lab"}),
            objects.namespace("shop", {"team": "a", "env": "prod"}),
        ),
        "the subject's labels": (
            objects.pod("shop/web", web, {"app": "free"}, {}),
            objects.pod("shop/web", web, front, {}),
        ),
        "an heir of the peer's address": (
            objects.pod("ops/heir", bare, {"app": "heir"}, {}, created=LATER),
            objects.pod("ops/heir", bare, {"app": "heir"}, {}, created=LATER, phase="Succeeded"),
        ),
    }


@pytest.mark.parametrize("what", KINDS_OF_CHANGES)
def test_a_changed_verdict_changes_once(world: World, tester: FlowTester, what: str) -> None:
    """Both other ends are open: `shop/free` lets everything out, `shop/into` lets everything in elsewhere."""
    others = {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}
    free = objects.policy("shop/free", spec({}, egress=[{}]))
    into = objects.policy("shop/into", spec(others, ingress=[{}]))
    world.show([*steady.policies().values(), free, into])
    opens, closes = opening(world)[what]
    watched = parse("shop/api ops/prom > shop/web: +80\nout > pay/card: +80\nout2 > pay/card: -80")
    unsure = [dataclasses.replace(each, open=None) for each in parse("shop/bare > shop/web: +80")]
    unsure = on_both_protocols(unsure)
    with Stream(world, tester, [*on_both_protocols(watched), *unsure]) as stream:
        for changed in (opens, closes):
            world.put({**world.standing, objects.key_of(changed): changed})
            stream.flow(3)
    stream.check()
    assert stream.seen == {str(each): [False, True, False] for each in unsure}


def test_a_restart_and_ends_at_random_moments(enforced: World, tester: FlowTester) -> None:
    draw = random.Random(SEED)
    turns = steady.changes(enforced)
    with Stream(enforced, tester, steady.flows()) as stream:
        for number in range(KILLS):
            assert enforced.program is not None
            for wanted in itertools.islice(turns, draw.randrange(6)):
                enforced.put(wanted, wait=False)
            stream.flow(draw.randrange(8))
            enforced.program.end(signal.SIGKILL if number else signal.SIGTERM)
            enforced.put(next(turns), wait=False)
            stream.flow(2)
            enforced.start(NFTABLES)
    stream.check()
    enforced.check([*parse(steady.FLOWS), *enforced.sample(800, "after kills")])


def test_it_starts_while_the_api_server_lists_nothing(enforced: World, tester: FlowTester) -> None:
    """What a former process left stands until the first lists are complete."""
    api = enforced.writer.api  # type: ignore[attr-defined]
    assert enforced.program is not None
    with Stream(enforced, tester, steady.flows()) as stream:
        for resource in ("networkpolicies", "pods", "namespaces"):
            enforced.program.end()
            with api.faults.during(Fault.status(503, resource=resource, times=None)):
                enforced.program = Kproxy(enforced.lab.node, enforced.command(NFTABLES, "--network-policy"))
                enforced.program.wait_log("synced")
                stream.flow(10)
            enforced.settle()
    stream.check()


def test_what_changes_while_the_api_server_is_away_counts_once_it_is_back(
    enforced: World, tester: FlowTester
) -> None:
    """Without its history every kind is listed anew, and what is gone is found missing."""
    api = enforced.writer.api  # type: ignore[attr-defined]
    changed = dict(enforced.standing)
    for gone in (("NetworkPolicy", "pay", "card"), ("Pod", "shop", "db"), ("Pod", "pay", "web")):
        del changed[gone]
    new = objects.policy("pay/new", spec(labels_in(app="api"), ingress=[rule_from(pods_with(app="web"))]))
    changed[objects.key_of(new)] = new
    kept = [each for each in steady.flows() if each.destination == "shop/web" or each.source == "shop/api"]
    with Stream(enforced, tester, [each for each in kept if each.source != "shop/db"]) as stream:
        api.restart(keep_history=False, while_down=lambda: enforced.put(changed, wait=False))
        enforced.settle()
        stream.flow(3)
    stream.check()
    enforced.check(
        [
            *parse("out2 > pay/card: +80\nout pay/card > pay/api: -80"),
            *enforced.sample(600, "away"),
        ]
    )


DAMAGE: dict[str, str] = {
    "the table deleted": "delete table {table}",
    "the table flushed": "flush table {table}",
    "another table in its place": "delete table {table}; add table {table}; "
    "add set {table} egress {{ type {address}; }}",
    "isolated pods removed": "flush map {table} ingress; flush map {table} egress",
    "a hook flushed": "flush chain {table} forward",
    "a rule that accepts everything": "insert rule {table} forward accept",
}
FAMILIES = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_repaired_and_costs_no_allowed_packet(
    enforced: World, tester: FlowTester, what: str
) -> None:
    assert enforced.program is not None
    allowed = [each for each in steady.flows() if each.open]
    with Stream(enforced, tester, allowed) as stream:
        for family, address in FAMILIES.items():
            command = DAMAGE[what].format(table=f"{family} {TABLE}", address=address)
            enforced.lab.node.run(["nft", "-f", "-"], stdin=command + "\n")
        closed_again(enforced, enforced.program)
    stream.check()
    enforced.check([*parse(steady.FLOWS), *enforced.sample(800, what)])
    enforced.settle()


def test_rules_of_others_are_left_alone(enforced: World) -> None:
    enforced.lab.node.run(
        ["nft", "-f", "-"], stdin="add table ip mine\nadd chain ip mine x\nadd table ip6 mine\n"
    )
    enforced.settle()
    enforced.check(parse(steady.FLOWS))
    assert "table ip mine" in enforced.lab.node.run(["nft", "list", "tables"]).stdout
    enforced.lab.node.run(["nft", "-f", "-"], stdin="delete table ip mine\ndelete table ip6 mine\n")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_an_address_changes_hands_in_any_order_of_events(world: World, order: tuple[int, ...]) -> None:
    """The old pod ends, its heir comes, and the old object goes; each may come late, or never be seen."""
    policy = objects.policy("shop/p", spec(WEB, ingress=[rule_from(pods_with(app="api"))]))
    world.show([policy])
    at, old = world.pods["shop/api"], ("Pod", "shop", "api")
    heir = objects.pod("pay/heir", at, {"app": "heir"}, {}, created=LATER)
    finished = objects.pod("shop/api", at, {"app": "api"}, {}, phase="Succeeded")

    def end(found: dict[Key, JSON]) -> None:
        if old in found:
            found[old] = finished

    def come(found: dict[Key, JSON]) -> None:
        found[objects.key_of(heir)] = heir

    def go(found: dict[Key, JSON]) -> None:
        found.pop(old, None)

    steps: tuple[Callable[[dict[Key, JSON]], None], ...] = (end, come, go)
    standing = dict(world.standing)
    for number in order:
        steps[number](standing)
        world.put(standing, wait=False)
        standing = dict(world.standing)
    world.settle()
    world.check(
        [
            *parse("shop/api > shop/web: -80\nshop/web > shop/api: +80\nout > shop/api: +80"),
            *world.sample(200, order),
        ]
    )


def test_an_established_connection_ends_once_a_policy_forbids_it(world: World) -> None:
    world.show()
    lab, web, api = world.lab, world.pods["shop/web"], world.pods["shop/api"]
    server = lab.serve(web, "TCP", 7100)
    try:
        with lab.hold(api, web.ip4, 7100) as held, lab.hold(world.pods["shop/db"], web.ip6, 7100) as kept:
            held.exchange("before")
            kept.exchange("before")
            deny = spec(WEB, ingress=[rule_from(pods_with(app="db"))])
            world.show([objects.policy("shop/p", deny)])
            assert world.program is not None

            def ended() -> bool:
                try:
                    held.exchange("after", timeout=0.5)
                except AskError:
                    return True
                return False

            world.program.until(ended, expected=True)
            kept.exchange("after")
    finally:
        lab.stop_serving(server)


@pytest.mark.parametrize("switched", ["networkPolicy", "mode"])
def test_a_reload_turns_it_off_and_on_and_a_mode_switch_leaves_it(
    configured: ConfiguredWorld, switched: str
) -> None:
    world, program = configured.world, configured.world.program
    assert program is not None
    world.show(steady.policies().values())
    expected = steady.flows() if switched == "mode" else [each for each in steady.flows() if each.open]
    with stream_tester(world) as tester, Stream(world, tester, expected) as stream:
        if switched == "mode":
            for mode in ("iptables", "nftables", "iptables", "nftables"):
                began = program.mark()
                configured.write(mode=mode)
                program.wait_log("mode_switched", f"mode={mode}", since=began)
                stream.flow(3)
                world.settle()
        else:
            configured.write(enabled=False)
            program.until(
                lambda: TABLE in world.lab.node.run(["nft", "list", "tables"]).stdout, expected=False
            )
            world.tester.attempt([world.flow(each) for each in parse(steady.FLOWS)], [True] * 100)
            configured.write(enabled=True)
            closed_again(world, program)
    stream.check()
    world.check([*parse(steady.FLOWS), *world.sample(800, switched)])
