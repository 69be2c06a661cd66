"""`kproxy policies`: what isolates the pods of a node, from an agent and from files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kproxy.cli.main import main
from tests.cli.nodes import LIMIT_AS_IT_IS, do, kproxy
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network
from tests.state.policy_objects import pod_json

JSON = dict[str, Any]


def policy(name: str, **spec: object) -> JSON:
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


OBJECTS: list[JSON] = [
    {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}},
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
    pod_json("web", "10.1.0.1", labels={"app": "web"}),
    pod_json("db", "10.1.0.2", labels={"app": "db"}),
    pod_json("free", "10.1.0.3", labels={"app": "free"}),
    pod_json("host", "192.168.0.2", labels={"app": "db"}, hostNetwork=True),
    pod_json("far", "10.2.0.1", labels={"app": "web"}, node="n2"),
    policy(
        "web",
        podSelector={"matchLabels": {"app": "web"}},
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "free"}}}], "ports": [{"port": 8080}]}],
    ),
    policy("db", podSelector={"matchLabels": {"app": "db"}}, policyTypes=["Ingress", "Egress"]),
    policy("odd", podSelector={"matchLabels": {"app": "db"}}, unheard=1),
]


@pytest.fixture
def flags(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(OBJECTS))
    return ("--manifests", str(tmp_path), "--hostname-override", "n1")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["policies", *arguments], prog_name="kproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_each_pod_of_the_node_is_a_line(flags: tuple[str, ...]) -> None:
    status, text, errors = run(*flags)
    assert (status, errors) == (0, "")
    assert text.splitlines()[:4] == [
        "POD        ADDRESSES  INGRESS            EGRESS",
        "shop/db    10.1.0.2   shop/db, shop/odd  shop/db, shop/odd",
        "shop/free  10.1.0.3   not isolated       not isolated",
        "shop/web   10.1.0.1   shop/web           not isolated",
    ]
    (problem,) = text.splitlines()[4:]
    assert problem.startswith("shop/odd cannot be obeyed, and allows nothing: ")
    assert "unheard" in problem


def test_json_has_the_same(flags: tuple[str, ...]) -> None:
    found = json.loads(run(*flags, "-o", "json")[1])
    assert [each["pod"] for each in found] == ["shop/db", "shop/free", "shop/web"]
    problems = found[0].pop("problems")
    assert found[0] == {
        "pod": "shop/db",
        "addresses": ["10.1.0.2"],
        "ingress": ["shop/db", "shop/odd"],
        "egress": ["shop/db", "shop/odd"],
    }
    assert list(problems) == ["shop/odd"]
    assert found[2]["problems"] == {}


def test_one_pod_has_what_it_may_do(flags: tuple[str, ...]) -> None:
    status, text, _ = run(*flags, "shop/web")
    assert status == 0
    assert text.splitlines() == [
        "shop/web: 10.1.0.1, on this node",
        "  ingress: isolated by shop/web",
        "    TCP 8080 from pods app=free in shop (shop/web ingress[0])",
        "  egress: not isolated",
    ]
    found = json.loads(run(*flags, "shop/far", "-o", "json")[1])
    assert (found["pod"], found["local"], found["addresses"], found["problems"]) == (
        "shop/far",
        False,
        ["10.2.0.1"],
        {},
    )
    assert found["directions"][0] == {
        "direction": "ingress",
        "policies": ["shop/web"],
        "closed": [],
        "rules": [{"origin": "shop/web ingress[0]", "allows": "TCP 8080 from pods app=free in shop"}],
        "everything": "",
    }


def test_a_policy_that_closes_a_pod_is_named_with_its_defect(flags: tuple[str, ...]) -> None:
    lines = run(*flags, "shop/db")[1].splitlines()
    assert "    shop/odd cannot be obeyed and allows nothing" in lines
    assert any(line.startswith("shop/odd cannot be obeyed, and allows nothing: ") for line in lines)


@pytest.mark.parametrize("pod", ["web", "shop/", "a/b/c", "shop/unknown"])
def test_what_is_no_known_pod_is_refused(flags: tuple[str, ...], pod: str) -> None:
    status, text, errors = run(*flags, pod)
    assert (status, text) == (1, "")
    assert "Error: " in errors


def in_a_network(test: Callable[[Path], None], directory: Path) -> None:
    @fresh_network
    def body() -> None:
        do("ip", "link", "set", "lo", "up")
        test(directory)

    body()


def test_the_running_kproxy_answers_the_same_and_explains_with_it(tmp_path: Path) -> None:
    in_a_network(_running, tmp_path)


def _running(directory: Path) -> None:
    (directory / "objects.yaml").write_text(yaml.safe_dump_all(OBJECTS))
    flags = ("--manifests", str(directory), "--hostname-override", "n1")
    assert "no kproxy runs in this network namespace" in run()[2]
    with Running("--proxy-mode=nftables", LIMIT_AS_IT_IS, objects=flags) as plain:
        plain.ready()
        for command in ("policies", "drops"):
            done = CliRunner().invoke(main, [command], prog_name="kproxy")
            assert done.exit_code == 1
            assert "does not enforce NetworkPolicies" in done.stderr
        assert (explained("10.1.0.9", "10.1.0.1:9090")[0], plain.end()) == (0, 0)
    with Running("--proxy-mode=nftables", "--network-policy", LIMIT_AS_IT_IS, objects=flags) as running:
        running.ready()
        running.wait("policy_synced", "IPv4")
        for arguments in ((), ("shop/web",), ("shop/db", "-o", "json"), ("-o", "json")):
            assert run(*arguments) == run(*flags, *arguments)
        assert run("shop/unknown") == (1, "", "Error: pod shop/unknown is not known\n")
        status, found = explained("10.1.0.9", "10.1.0.1:9090")
        assert (status, found["desired"]["outcomes"][0]["verdict"]) == (3, "drop")
        assert found["policies"][0]["policies"] == ["shop/web"]
        assert explained("10.1.0.3", "10.1.0.1:8080")[0] == 0
        drops = kproxy("drops")
        assert (drops.returncode, drops.stdout, drops.stderr) == (0, "", "")
        assert running.end() == 0


def explained(source: str, destination: str) -> tuple[int, JSON]:
    arguments = ["explain", source, "tcp", destination, "--desired-only", "-o", "json"]
    done = CliRunner().invoke(main, arguments, prog_name="kproxy")
    found: JSON = json.loads(done.stdout)
    return done.exit_code, found
