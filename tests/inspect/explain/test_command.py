"""`kproxy explain` without root: JSON, screen and exit codes, from manifests and from an agent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kproxy.cli.main import main
from kproxy.inspect.explain.client import PATH
from kproxy.telemetry.http.server import Answer, HttpServer
from tests.builders import Json, endpoint_slice, port, service
from tests.inspect.explain.clusters import NODE, explain, pod
from tests.inspect.explain.clusters import cluster as cluster_of

HINTED: dict[str, Any] = {"zones": ["zone-a"]}
OBJECTS: list[Json] = [
    NODE,
    service("cart", "10.96.0.80", namespace="shop", ports=[port(80, "http")]),
    endpoint_slice(
        pod("10.244.1.12", "cart-6f9-x2", **HINTED) | {"zone": "zone-a"},
        pod("10.244.2.7", "cart-6f9-p4", "node-b", **HINTED) | {"zone": "zone-a"},
        pod("10.244.3.9", "cart-6f9-q1", "node-c", zones=["eu-1b"]),
        pod("10.244.2.8", "cart-6f9-k7", "node-b", ready=False, serving=True, terminating=True),
        service="cart",
        namespace="shop",
        ports=[port(8080, "http")],
    ),
    service("none", "10.96.0.81", namespace="shop"),
]
QUESTION = ("10.244.1.10", "tcp", "shop/cart:http")


def kind_of(document: Json) -> str:
    if "addressType" in document:
        return "EndpointSlice"
    return "Node" if "podCIDR" in document["spec"] else "Service"


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    versions = {"EndpointSlice": "discovery.k8s.io/v1"}
    for number, each in enumerate(OBJECTS):
        kind = kind_of(each)
        document = {"apiVersion": versions.get(kind, "v1"), "kind": kind, **each}
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["explain", *arguments], prog_name="kproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def desired(manifests: Path, *arguments: str) -> tuple[int, str, str]:
    source = (
        "--manifests",
        str(manifests),
        "--hostname-override",
        "node1",
        "--cluster-cidr",
        "10.244.0.0/16",
    )
    return run(*source, "--desired-only", *arguments)


def test_json_has_the_question_the_outcomes_and_the_exclusions(manifests: Path) -> None:
    status, text, errors = desired(manifests, "-o", "json", *QUESTION)
    found = json.loads(text)
    assert (status, errors) == (0, "")
    assert found["source"] == {"ip": "10.244.1.10", "where": "pod", "interface": None}
    assert (found["protocol"], found["destination"]) == ("TCP", {"ip": "10.96.0.80", "port": 80})
    assert found["frontend"] == {"service": "shop/cart", "port": "http", "kind": "ClusterIP"}
    assert found["desired"]["outcomes"][0] == {
        "verdict": "forward",
        "endpoint": "10.244.1.12:8080",
        "masquerade": False,
        "probability": 0.5,
        "pod": "shop/cart-6f9-x2",
        "node": "node1",
        "zone": "zone-a",
    }
    assert found["actual"] is None
    assert found["differences"] == []
    excluded = [
        {name: each[name] for name in ("endpoint", "pod", "reason", "detail")} for each in found["excluded"]
    ]
    assert excluded == [
        {
            "endpoint": "10.244.2.8:8080",
            "pod": "shop/cart-6f9-k7",
            "reason": "terminating",
            "detail": "ready endpoints exist",
        },
        {
            "endpoint": "10.244.3.9:8080",
            "pod": "shop/cart-6f9-q1",
            "reason": "hint",
            "detail": "zones eu-1b",
        },
    ]


def test_the_screen_says_it_in_words(manifests: Path) -> None:
    status, text, _ = desired(manifests, *QUESTION)
    assert status == 0
    assert text.splitlines() == [
        "10.244.1.10 → 10.96.0.80:80/TCP         shop/cart:http, cluster IP",
        "  policy    internalTrafficPolicy Cluster; source is a pod: address kept",
        "  answers    50 %  10.244.1.12:8080  cart-6f9-x2  this node",
        "             50 %  10.244.2.7:8080   cart-6f9-p4  node-b, zone zone-a",
        "  excluded  10.244.2.8:8080  cart-6f9-k7  terminating, and ready endpoints exist",
        "            10.244.3.9:8080  cart-6f9-q1  hint: zones eu-1b, this node is in zone-a",
    ]


@pytest.mark.parametrize(
    ("destination", "expected", "verdict", "frontend"),
    [
        ("shop/cart", 0, "forward", True),
        ("shop/none", 3, "reject", True),
        ("192.168.7.7:80", 0, "pass", False),
    ],
)
def test_exit_codes_and_verdicts(
    manifests: Path, destination: str, expected: int, verdict: str, frontend: bool
) -> None:
    status, text, _ = desired(manifests, "-o", "json", "10.244.1.10", "tcp", destination)
    found = json.loads(text)
    assert status == expected
    assert {each["verdict"] for each in found["desired"]["outcomes"]} == {verdict}
    assert (found["frontend"] is not None) is frontend


@pytest.mark.parametrize(
    "arguments",
    [
        ("nowhere", "tcp", "shop/cart"),
        ("node", "icmp", "shop/cart"),
        ("node", "tcp", "shop/unknown"),
        ("node", "tcp"),
    ],
)
def test_an_unknown_answer_exits_with_one_and_a_reason(manifests: Path, arguments: tuple[str, ...]) -> None:
    status, text, errors = desired(manifests, *arguments)
    assert (status, text) == (1, "")
    assert "Error: " in errors


@contextmanager
def agent(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that gives this answer, its address, and the queries that came."""
    asked: list[str] = []

    def reply(query: str) -> Answer:
        asked.append(query)
        return answer

    server = HttpServer("test", "127.0.0.1:0", {}, queries={PATH: reply})
    server.start()
    try:
        yield f"127.0.0.1:{server.port}", asked
    finally:
        server.stop()


def test_without_a_source_of_objects_the_agent_is_asked() -> None:
    report: Any = explain(cluster_of(OBJECTS[1:]), *(QUESTION[0], QUESTION[2]))
    with agent(Answer(report.json())) as (address, asked):
        status, text, _ = run("--address", address, "--desired-only", "-o", "json", *QUESTION)
    assert status == 0
    assert json.loads(text) == json.loads(report.json())
    assert asked == ["src=10.244.1.10&proto=tcp&dst=shop%2Fcart%3Ahttp"]


def test_the_agents_refusal_is_the_error() -> None:
    with agent(Answer(b"Service shop/x is not known\n", status=400)) as (address, _):
        status, _, errors = run("--address", address, "--desired-only", "node", "tcp", "shop/x")
    assert (status, errors) == (1, "Error: Service shop/x is not known\n")


def test_no_agent_is_an_error_that_names_the_address() -> None:
    status, _, errors = run("--address", "127.0.0.1:9", "--desired-only", *QUESTION)
    assert status == 1
    assert "http://127.0.0.1:9/explain" in errors
