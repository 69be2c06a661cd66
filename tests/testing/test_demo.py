"""The demo: its second opinion on what should happen, its judgement, and that it leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from kproxy.addresses import Family
from kproxy.agent.config import ProxyConfig
from kproxy.agent.offline import render_manifests
from kproxy.cli import demo as command
from kproxy.cli.main import main
from kproxy.testing.demo import examples, interruption, offline
from kproxy.testing.demo.changes import Change, _Ask, _blur, _obeyed, planned, subject
from kproxy.testing.demo.examples import Examples, Json, UnusableExamplesError
from kproxy.testing.demo.expect import Asker, Outcome, Question, Source, listeners, topics
from kproxy.testing.demo.interruption import Interrupted, Interruption
from kproxy.testing.demo.judge import judge
from kproxy.testing.demo.program import LogLine
from kproxy.testing.demo.screen import UNICODE, bar
from kproxy.testing.lab import Answer, AskError, Namespace, Pod, Refused
from kproxy.testing.lab.namespaces import RUN_DIR
from kproxy.testing.lab.topology import NODE, PEER, NodeAddresses

NODE_ADDRESSES = frozenset({"192.168.100.10", "10.244.1.1"})


def a_pod(own: NodeAddresses, index: int, *, local: bool) -> Pod:
    node_name, name = ("node-a", f"local-{index}") if local else ("node-b", f"remote-{index}")
    return Pod(name, *own.pod(index), node_name, local, cast("Namespace", None))


PODS = [a_pod(NODE, i, local=True) for i in range(3)] + [a_pod(PEER, i, local=False) for i in range(3)]


@pytest.fixture(scope="module")
def shipped() -> Examples:
    return examples.load(examples.find())


def asked(of: Examples) -> dict[tuple[str, Asker], Question]:
    return {(each.address, each.asker): each for topic in topics(of, PODS) for each in topic.questions}


def service(**spec: object) -> Json:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    spec = {"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": ports, **spec}
    return {"kind": "Service", "metadata": {"name": "s", "namespace": "n"}, "spec": spec}


def objects(spec: Json, **conditions: Json) -> Examples:
    """A service with one endpoint for each pod named, `local_0={...}` its conditions."""
    by_name = {pod.name: pod for pod in PODS}
    endpoints = [
        {"addresses": [by_name[name.replace("_", "-")].ip4], "conditions": each}
        for name, each in conditions.items()
    ]
    metadata = {"name": "s-1", "namespace": "n", "labels": {examples.SERVICE_NAME: "s"}}
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    each = {"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4", "ports": ports}
    return Examples(Path(), (spec, {**each, "endpoints": endpoints}))


def answer(pod: str, saw: str, own: str = "192.0.2.10") -> Answer:
    return Answer(pod, saw, 40000, "10.244.1.10", 8080, own, 40000, "", 0.0, 0.0)


@pytest.mark.parametrize("family", Family)
def test_the_examples_are_flawless_for_kproxy(shipped: Examples, family: Family) -> None:
    config = ProxyConfig(node_name="node-a", manifests=shipped.directory, cluster_cidrs=offline.CLUSTER_CIDR)
    text, problems = render_manifests(config, family)
    assert problems == ()
    assert '"demo/web:http cluster IP"' in text
    assert "demo/search" not in text


def test_the_examples_show_every_kind_of_service(shipped: Examples) -> None:
    kinds = {question.kind for topic in topics(shipped, PODS) for question in topic.questions}
    assert kinds == {"ClusterIP", "NodePort", "LoadBalancer"}
    refused = {topic.service: topic.not_proxied for topic in topics(shipped, PODS) if topic.not_proxied}
    assert refused.keys() == {"demo/search", "demo/payments"}
    assert any(question.protocol == "UDP" for question in asked(shipped).values())
    assert any(":" in question.ip for question in asked(shipped).values())


def test_the_examples_have_the_answers_that_kubernetes_promises(shipped: Examples) -> None:
    by_address = asked(shipped)
    everybody = ("local-0", "local-1", "remote-0", "remote-1")
    assert by_address["10.96.0.80:80/TCP", Asker.POD].answers == dict.fromkeys(everybody, Source.OWN)
    hairpin = by_address["10.96.0.80:80/TCP", Asker.ENDPOINT].answers
    assert [name for name, source in hairpin.items() if source is Source.NODE] == ["local-0"]
    node_port = by_address["192.168.100.10:30080/TCP", Asker.CLIENT].answers
    assert node_port == dict.fromkeys(everybody, Source.NODE)
    local_only = by_address["203.0.113.80:80/TCP", Asker.CLIENT].answers
    assert local_only == dict.fromkeys(("local-0", "local-1"), Source.OWN)
    short_circuit = by_address["203.0.113.80:80/TCP", Asker.POD].answers
    assert short_circuit == dict.fromkeys(everybody, Source.OWN)
    assert by_address["203.0.113.90:80/TCP", Asker.CLIENTS].sticky
    nobody = by_address["10.96.0.100:80/TCP", Asker.POD]
    assert (nobody.answers, nobody.otherwise) == ({}, Outcome.REFUSED)


def test_draining_endpoints_answer_when_no_other_does() -> None:
    draining = {"ready": False, "serving": True, "terminating": True}
    both = objects(service(), local_0=draining, remote_0={"ready": True})
    alone = objects(service(), local_0=draining, remote_0={"ready": False})
    address = "10.96.0.1:80/TCP", Asker.POD
    assert set(asked(both)[address].answers) == {"remote-0"}
    assert set(asked(alone)[address].answers) == {"local-0"}


def test_local_policies_drop_where_others_could_answer_and_refuse_where_nobody_could() -> None:
    ready = {"ready": True}
    inside = objects(service(internalTrafficPolicy="Local"), remote_0=ready)
    assert asked(inside)["10.96.0.1:80/TCP", Asker.POD].otherwise is Outcome.DROPPED
    ports = [{"name": "http", "port": 80, "nodePort": 30000}]
    outside = service(type="NodePort", externalTrafficPolicy="Local", ports=ports)
    node_port = "192.168.100.10:30000/TCP", Asker.CLIENT
    assert asked(objects(outside, remote_0=ready))[node_port].otherwise is Outcome.DROPPED
    assert asked(objects(outside))[node_port].otherwise is Outcome.REFUSED


def test_services_of_other_proxies_are_not_asked() -> None:
    foreign = service()
    foreign["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "cilium"}
    (topic,) = topics(objects(foreign, local_0={}), PODS)
    assert topic.questions == ()
    assert topic.not_proxied == "it is left to cilium"


def test_an_endpoint_outside_the_lab_is_named() -> None:
    strange = objects(service(), local_0={})
    strange.objects[1]["endpoints"][0]["addresses"] = ["10.0.0.1"]
    with pytest.raises(UnusableExamplesError, match=r"n/s-1: 10\.0\.0\.1 is no pod of the lab"):
        topics(strange, PODS)


def test_every_endpoint_is_served_once(shipped: Examples) -> None:
    served = [(each.pod.name, each.protocol, each.port) for each in listeners(shipped, PODS)]
    assert len(served) == len(set(served))
    assert {("local-1", "UDP", 53), ("local-1", "TCP", 53), ("remote-1", "TCP", 8081)} <= set(served)


@pytest.mark.parametrize(
    ("outcomes", "wrong"),
    [
        ([answer("a", "192.0.2.10"), answer("b", "192.168.100.10")] * 50, None),
        (
            [answer("a", "192.0.2.10"), answer("c", "192.168.100.10")] * 50,
            "got c 50 times; expected a, b only",
        ),
        ([answer("a", "192.168.100.10"), answer("b", "10.244.1.1")] * 50, "not the client's own"),
        ([answer("a", "192.0.2.10"), answer("b", "192.0.2.10")] * 50, "no address of the node"),
        ([answer("a", "192.0.2.10")] * 100, "b answered 0 of 100, a fair share is 50"),
        ([answer("a", "192.0.2.10"), answer("b", "10.244.1.1"), Refused("")] * 50, "got Refused 50 times"),
    ],
)
def test_answers_are_judged(outcomes: list[Answer | AskError], wrong: str | None) -> None:
    question = Question(
        "n/s", "ClusterIP", "10.96.0.1", 80, "TCP", Asker.CLIENT, {"a": Source.OWN, "b": Source.NODE}
    )
    finding = judge(question, outcomes, NODE_ADDRESSES)
    if wrong is None:
        assert finding.wrong == ()
        assert finding.counts == Counter(a=50, b=50)
        assert (finding.own, finding.node) == (("192.0.2.10",), ("192.168.100.10",))
    else:
        assert wrong in "; ".join(finding.wrong)


def test_a_client_with_affinity_must_not_move() -> None:
    answers = {"a": Source.OWN, "b": Source.OWN}
    question = Question("n/s", "ClusterIP", "10.96.0.1", 80, "TCP", Asker.CLIENTS, answers, sticky=True)
    keeps: list[Answer | AskError] = [answer("a", "192.0.2.10")] * 9
    assert judge(question, keeps, NODE_ADDRESSES).wrong == ()
    moved = judge(question, [*keeps, answer("b", "192.0.2.10")], NODE_ADDRESSES)
    assert moved.wrong == ("192.0.2.10 met a, b",)


def test_refusal_is_right_when_nobody_is_ready() -> None:
    question = Question("n/s", "ClusterIP", "10.96.0.1", 80, "TCP", Asker.POD, {})
    assert judge(question, [Refused("")] * 3, NODE_ADDRESSES).wrong == ()
    assert judge(question, [answer("a", "10.244.1.12")], NODE_ADDRESSES).wrong != ()


def test_a_change_is_obeyed_when_the_newcomer_answers_or_the_leaver_no_longer_does() -> None:
    asks = [_Ask(float(i), pod, failed=False) for i, pod in enumerate("abacabbbb")]
    comes = Change("", PODS[0], comes=True, edit=lambda each: each["endpoints"])
    leaves = Change("", PODS[0], comes=False, edit=lambda each: each["endpoints"])
    named = [_Ask(a.began, "local-0" if a.answered_by == "a" else a.answered_by, a.failed) for a in asks]
    assert _obeyed(named[1:], comes) == 2.0
    assert _obeyed(named, leaves) == 5.0
    assert _obeyed(named[:5], leaves) is None
    assert _blur(named, 2.0, 2, comes) == 2.0
    assert _blur(named, 5.0, 3, leaves) == 3.0


def test_changes_keep_slices_of_both_families_in_step(shipped: Examples) -> None:
    about = subject(shipped, PODS)
    assert about is not None
    assert (about.ip, about.newcomer.name) == ("10.96.0.80", "remote-2")
    slices = shipped.slices(about.service)
    counts = []
    for change in planned(about):
        slices = examples.with_endpoints(slices, change.edit)
        ready = [[e for e in each["endpoints"] if e["conditions"]["ready"]] for each in slices]
        counts.append([len(each) for each in ready])
    assert counts == [[5, 5], [4, 4], [5, 5], [4, 4]]


@pytest.mark.parametrize(
    ("share", "drawn"), [(0.0, ""), (0.001, "▏"), (0.25, "█"), (0.5, "██"), (0.54, "██▏"), (1.0, "████")]
)
def test_bars_have_eighths(share: float, drawn: str) -> None:
    assert bar(share, UNICODE.eighths) == drawn


def test_log_lines_are_read() -> None:
    line = LogLine.parse('timestamp=2026-01-02T03:04:05.5Z level=info event=synced reason="a b" ms=1')
    assert line.at == 1767323045.5
    assert (line.fields["event"], line.fields["reason"], line.fields["ms"]) == ("synced", "a b", "1")
    assert LogLine.parse("Traceback (most recent call last):").fields == {}


@pytest.mark.parametrize("to_main", [True, False])
def test_a_signal_ends_the_work_whichever_thread_it_falls_to(to_main: bool) -> None:
    unwound = []
    main_thread = threading.main_thread().ident
    looks: list[str] = []

    def asleep() -> int:
        """How many looks at the main thread in a row found it sleeping (proc_pid_stat(5), field 3)."""
        state = Path(f"/proc/self/task/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[0]
        looks[:] = [*looks, state] if state == "S" else []
        return len(looks)

    def work(stop: Interruption) -> None:
        try:
            while asleep() < 100:  # then the main thread is waiting for the work
                pass
            target = main_thread if to_main else threading.get_ident()
            assert target is not None
            signal.pthread_kill(target, signal.SIGTERM)
            stop.wait_for(lambda: False, 30.0)
        finally:
            unwound.append(True)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        interruption.run(work)
    assert stopped.value.number == signal.SIGTERM
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_where_the_demo_cannot_run_it_shows_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "missing", lambda: ["not root"])
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 0
    assert "must be root" in result.output
    assert "-j DNAT --to-destination 10.244.1.11:53" in result.output
    assert "kproxy render --manifests" in result.output


def test_without_the_extra_packages_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _name: None)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 1
    assert "pip install 'kproxy[lab]'" in result.output


def test_the_other_commands_do_without_the_extra_packages() -> None:
    check = (
        "import sys; sys.modules |= {'rich': None, 'aiohttp': None}; "
        "import kproxy.cli.main, kproxy.agent.service; sys.exit('kproxy.testing' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.fixture(scope="module")
def possible() -> None:
    if reasons := offline.missing():
        pytest.skip("; ".join(reasons))


class Run:
    """A demo in a process of its own. `trace` is a directory that its kproxy's command line names."""

    def __init__(self, trace: Path, *arguments: str) -> None:
        self._trace = trace
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kproxy", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(trace), "COLUMNS": "112", "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
        )

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"no {text!r} in\n{self.output}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait()

    def kproxies(self) -> list[int]:
        """The processes of kproxy that it started, whoever is their parent now."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(os.fsencode(self._trace)) for word in words):
                found.append(int(path.parent.name))
        return found

    def namespaces(self) -> list[str]:
        return [path.name for path in RUN_DIR.glob(f"kplab-{self.process.pid}-*")]


@contextmanager
def running(trace: Path, *arguments: str) -> Iterator[Run]:
    run = Run(trace, *arguments)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            run.end()


@pytest.mark.root
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_everything_goes_as_promised(possible: None, tmp_path: Path, variant: str) -> None:
    with running(tmp_path, "--iptables-variant", variant) as run:
        assert run.end() == 0, run.output
    assert "✓ All 23 expectations held." in run.output
    assert f"variant {variant} (as asked)" in run.output
    assert f"# iptables-{variant}-save -t nat | grep 'kube-system/kube-dns:dns[\" ]'" in run.output
    assert "✗" not in run.output
    assert "\x1b" not in run.output
    assert (run.namespaces(), run.kproxies(), list(tmp_path.iterdir())) == ([], [], []), run.output


@pytest.mark.root
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("kproxy: from", signal.SIGINT),
        ("network lab", signal.SIGINT),
        ("embedded API server", signal.SIGTERM),
        ("embedded API server", signal.SIGINT),
        ("demo/web-nodeport", signal.SIGINT),
        ("scale up", signal.SIGINT),
        ("scale up", signal.SIGTERM),
    ],
)
def test_it_can_be_interrupted_at_any_moment(
    possible: None, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    with running(tmp_path) as run:
        run.read_until(moment)
        run.process.send_signal(number)
        assert run.end() == 128 + number, run.output
    assert "everything is cleaned up" in run.output
    assert (run.namespaces(), run.kproxies(), list(tmp_path.iterdir())) == ([], [], []), run.output


@pytest.mark.root
def test_if_kproxy_dies_its_log_is_shown(possible: None, tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.read_until("demo/web ")
        (pid,) = run.kproxies()
        os.kill(pid, signal.SIGKILL)
        assert run.end() == 1
    assert "kproxy ended by itself with status -9" in run.output
    assert "event=synced family=IPv4" in run.output
    assert (run.namespaces(), run.kproxies()) == ([], [])


@pytest.mark.root
def test_an_expectation_that_does_not_hold_is_named(possible: None, tmp_path: Path) -> None:
    """Topology hints are beyond the demo's second opinion: kproxy leaves out an endpoint it expects."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    hinted = "hints: {forZones: [{name: zone-%d}]}"
    (manifests / "hints.yaml").write_text(
        f"""
apiVersion: v1
kind: Node
metadata: {{name: node-a, labels: {{topology.kubernetes.io/zone: zone-1}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: near, namespace: demo}}
spec: {{clusterIP: 10.96.0.7, ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: near-1, namespace: demo, labels: {{kubernetes.io/service-name: near}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints:
- {{addresses: [10.244.1.10], nodeName: node-a, {hinted % 1}}}
- {{addresses: [10.244.2.10], nodeName: node-b, {hinted % 2}}}
"""
    )
    with running(tmp_path, "--manifests", str(manifests)) as run:
        assert run.end() == 1, run.output
    assert "did not hold" in run.output
    assert "demo/near, ClusterIP 10.96.0.7:80/TCP from pod local-1" in run.output
    assert (run.namespaces(), run.kproxies()) == ([], [])
