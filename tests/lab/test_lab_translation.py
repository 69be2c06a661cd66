"""The lab sees what rules in the node do to packets: shares, sources, refusals, and flows that live on."""

import shutil
from collections.abc import Callable, Iterator

import pytest

from kproxy_lab.lab import Lab, LabSpec, NoAnswer, Pod, Refused, Unreachable
from kproxy_lab.lab.servers import Protocol, host_port
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family

pytestmark = pytest.mark.root

SERVICE: dict[Family, str] = {4: "10.96.0.10", 6: "fd00:10:96::10"}
EXTERNAL: dict[Family, str] = {4: "203.0.113.5", 6: "2001:db8:2::5"}
EVERY_TABLE = "*nat\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n*filter\nCOMMIT\n"

MASQUERADE_OUT = "-A POSTROUTING -o eth0 -j MASQUERADE"

Restore = Callable[[Family, str], None]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(LabSpec(local_pods=2, remote_pods=2, client_addresses=4)) as made:
        for pod in made.pods:
            made.serve(pod, "TCP", 8080)
            made.serve(pod, "UDP", 8080)
        yield made


@pytest.fixture(scope="module")
def variant(lab: Lab) -> str:
    for name in ("nft", "legacy"):
        command = f"iptables-{name}-restore"
        if shutil.which(command) and lab.node.run([command], stdin=EVERY_TABLE, check=False).returncode == 0:
            return name
    pytest.skip("no iptables-restore with a nat table")


@pytest.fixture
def restore(lab: Lab, variant: str) -> Iterator[Restore]:
    def load(family: Family, rules: str) -> None:
        lab.node.run([f"{'ip' if family == 4 else 'ip6'}tables-{variant}-restore"], stdin=rules)

    yield load
    load(4, EVERY_TABLE)
    load(6, EVERY_TABLE)


def in_turn(pods: list[Pod], family: Family, address: str, protocol: Protocol, *more: str) -> str:
    """A nat table that sends new flows to each of the pods in turn."""
    lines = []
    for left in range(len(pods), 0, -1):
        turn = f"-m statistic --mode nth --every {left} --packet 0 " if left > 1 else ""
        to = host_port(pods[left - 1].ip(family), 8080)
        match = f"-d {address} -p {protocol.lower()} --dport 80"
        lines += [
            f"-A {chain} {match} {turn}-j DNAT --to-destination {to}" for chain in ("PREROUTING", "OUTPUT")
        ]
    return "\n".join(["*nat", *lines, *more, "COMMIT", ""])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_shares_go_where_the_rules_say(
    lab: Lab, restore: Restore, protocol: Protocol, family: Family
) -> None:
    restore(family, in_turn(lab.pods, family, SERVICE[family], protocol, MASQUERADE_OUT))
    share = {pod.name: 10 for pod in lab.pods}
    assert lab.ask_many(lab.client, SERVICE[family], 80, 40, protocol) == share
    assert lab.ask_many(lab.node, SERVICE[family], 80, 40, protocol) == share


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_reaches_its_neighbour_through_a_service(lab: Lab, restore: Restore, family: Family) -> None:
    neighbour = lab.local_pods[1]
    to = host_port(neighbour.ip(family), 8080)
    rule = f"-A PREROUTING -d {SERVICE[family]} -p tcp --dport 80 -j DNAT --to-destination {to}"
    restore(family, f"*nat\n{rule}\nCOMMIT\n")
    answer = lab.ask(lab.local_pods[0], SERVICE[family], 80)
    assert (answer.pod, answer.source_ip_seen) == (neighbour.name, lab.local_pods[0].ip(family))


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_reaches_itself_only_when_masqueraded(lab: Lab, restore: Restore, family: Family) -> None:
    pod = lab.local_pods[0]
    to = host_port(pod.ip(family), 8080)
    rule = f"-A PREROUTING -d {SERVICE[family]} -p tcp --dport 80 -j DNAT --to-destination {to}"
    restore(family, f"*nat\n{rule}\nCOMMIT\n")
    with pytest.raises(NoAnswer):
        lab.ask(pod, SERVICE[family], 80, timeout=0.1)
    hairpin = f"-A POSTROUTING -s {pod.ip(family)} -d {pod.ip(family)} -j MASQUERADE"
    restore(family, f"*nat\n{rule}\n{hairpin}\nCOMMIT\n")
    answer = lab.ask(pod, SERVICE[family], 80)
    assert answer.pod == pod.name
    assert answer.source_ip_seen != pod.ip(family)


@pytest.mark.parametrize("family", [4, 6])
def test_the_source_is_the_client_or_the_masquerading_node(
    lab: Lab, restore: Restore, family: Family
) -> None:
    client = (lab.spec.client_ip4 if family == 4 else lab.spec.client_ip6)[2]
    node = NODE_IP4[0] if family == 4 else NODE_IP6[0]
    restore(family, in_turn(lab.pods, family, EXTERNAL[family], "TCP", MASQUERADE_OUT))
    answers = [lab.ask(lab.client, EXTERNAL[family], 80, source_ip=client) for _ in lab.pods]
    seen = {answer.pod: answer.source_ip_seen for answer in answers}
    assert seen == {"local-0": client, "local-1": client, "remote-0": node, "remote-1": node}


@pytest.mark.parametrize("family", [4, 6])
def test_a_forgotten_masquerade_towards_the_other_node_is_noticed(
    lab: Lab, restore: Restore, family: Family
) -> None:
    restore(family, in_turn(lab.remote_pods, family, EXTERNAL[family], "TCP"))
    with pytest.raises(NoAnswer):
        lab.ask(lab.client, EXTERNAL[family], 80, timeout=0.1)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_reject_and_drop_are_distinguished(
    lab: Lab, restore: Restore, protocol: Protocol, family: Family
) -> None:
    match = f"-A FORWARD -d {SERVICE[family]} -p {protocol.lower()}"
    restore(family, f"*filter\n{match} --dport 80 -j REJECT\n{match} --dport 81 -j DROP\nCOMMIT\n")
    assert lab.ask_many(lab.client, SERVICE[family], 80, 40, protocol) == {"Refused": 40}
    with pytest.raises(NoAnswer):
        lab.ask(lab.client, SERVICE[family], 81, protocol, timeout=0.1)


def test_prohibited_is_unreachable(lab: Lab, restore: Restore) -> None:
    rule = f"-A FORWARD -d {SERVICE[4]} -j REJECT --reject-with icmp-admin-prohibited"
    restore(4, f"*filter\n{rule}\nCOMMIT\n")
    with pytest.raises(Unreachable):
        lab.ask(lab.client, SERVICE[4], 80)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_a_held_flow_outlives_its_rules(
    lab: Lab, restore: Restore, protocol: Protocol, family: Family
) -> None:
    restore(family, in_turn(lab.pods, family, SERVICE[family], protocol, MASQUERADE_OUT))
    with lab.hold(lab.client, SERVICE[family], 80, protocol) as held:
        pod = held.exchange("before").pod
        # The last rule that needs conntrack would take the translation of all flows with it (nft).
        restore(family, EVERY_TABLE + "*filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED\nCOMMIT\n")
        with pytest.raises(Unreachable):
            lab.ask(lab.client, SERVICE[family], 80, protocol)
        assert held.exchange("after").pod == pod


@pytest.mark.parametrize("family", [4, 6])
def test_sctp_is_translated_there_and_back(lab: Lab, restore: Restore, family: Family) -> None:
    client = (lab.spec.client_ip4 if family == 4 else lab.spec.client_ip6)[1]
    restore(family, in_turn(lab.local_pods, family, SERVICE[family], "SCTP"))
    arrived = set()
    for _ in lab.local_pods:
        at = lab.probe_sctp(lab.client, SERVICE[family], 80, source_ip=client)
        assert at is not None
        assert (at.source_ip, at.port, at.answered) == (client, 8080, True)
        arrived.add(at.pod)
    assert arrived == {"local-0", "local-1"}

    restore(family, in_turn(lab.remote_pods, family, SERVICE[family], "SCTP", MASQUERADE_OUT))
    at = lab.probe_sctp(lab.client, SERVICE[family], 80, source_ip=client)
    assert at is not None
    assert (at.source_ip, at.answered) == (NODE_IP4[0] if family == 4 else NODE_IP6[0], True)
    restore(family, in_turn(lab.remote_pods, family, SERVICE[family], "SCTP"))
    at = lab.probe_sctp(lab.client, SERVICE[family], 80, source_ip=client, timeout=0.1)
    assert at is not None
    assert (at.source_ip, at.answered) == (client, False)  # the answer comes back past the node


@pytest.mark.parametrize("family", [4, 6])
def test_rejected_sctp_is_refused(lab: Lab, restore: Restore, family: Family) -> None:
    restore(family, f"*filter\n-A FORWARD -d {SERVICE[family]} -p sctp -j REJECT\nCOMMIT\n")
    with pytest.raises(Refused):
        lab.probe_sctp(lab.client, SERVICE[family], 80)
