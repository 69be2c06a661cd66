"""`kproxy record`, and what --replay makes of its file, as an operator calls them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.cli.nodes import CLUSTER, EXAMPLES, FLAGS, LIMIT_AS_IT_IS, do, kproxy
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network

SOURCE = ("--manifests", str(EXAMPLES), "--hostname-override", "node-a", "--cluster-cidr", CLUSTER)
WORDS = ("cart", "reports", "demo", "node-a", "node-b", "10.244.", "10.96.", "192.168.100.10", "fd00:10:")


def record(file: Path, *flags: str) -> str:
    """Write a recording; what the command printed on stderr."""
    done = kproxy("record", str(file), *flags)
    assert done.returncode == 0, done.stderr
    return done.stderr


def blocks(ruleset: str) -> list[str]:
    """The sets and chains; nft lists them in the order in which they were made."""
    body = ruleset.replace("}\ntable", "}\n\ntable").replace("{\n\tchain", "{\n\n\tchain")
    return sorted(each.strip(" \n}") for each in body.split("\n\n"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of the examples, made without an agent."""
    path = tmp_path_factory.mktemp("record") / "a.rec"
    warning = record(path, "--duration", "0", "--address", "127.0.0.1:1", *SOURCE)
    assert "without the reports of an agent" in warning
    return path


def test_a_recording_renders_as_the_objects_that_were_recorded(file: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.rec.gz"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    record(hidden, "--replay", str(file), "--anonymize")
    flags = ("--proxy-mode=ipvs", "--ip-family=4")
    original = kproxy("render", *SOURCE[:2], "--node=node-a", *SOURCE[4:], *flags).stdout
    assert original
    assert kproxy("render", "--replay", str(file), *flags).stdout == original
    replaced = kproxy("render", "--replay", str(hidden), *flags).stdout
    assert len(replaced.splitlines()) == len(original.splitlines())
    assert [word for word in WORDS if word in replaced] == []


def test_explain_answers_from_a_recording(file: Path) -> None:
    asked = ("explain", "-o", "json", "--desired-only", "10.244.1.99", "tcp", "demo/web")
    done = kproxy(*asked, "--replay", str(file))
    assert (done.returncode, done.stdout) == (0, kproxy(*asked, *SOURCE).stdout)
    services = next(
        each["event"]
        for each in map(json.loads, file.read_text().splitlines())
        if each["entry"] == "list_complete" and each["kind"] == "Service"
    )
    done = kproxy(*asked, "--replay", str(file), "--at", str(services))
    assert done.returncode == 3
    assert json.loads(done.stdout)["desired"]["outcomes"][0]["verdict"] == "reject"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--at", "2"), "--at: is for --replay"),
        (("--replay", "FILE", "--at", "99"), "--at: 99 is more than the last event, 4"),
        (("--replay", "FILE", "--manifests", str(EXAMPLES)), "--replay: excludes --manifests"),
        (("--replay", "missing.rec"), "missing.rec: No such file or directory"),
        ((), "--manifests is needed, or --replay"),
    ],
)
def test_flags_that_do_not_fit_are_refused(file: Path, flags: tuple[str, ...], message: str) -> None:
    done = kproxy("render", *(str(file) if each == "FILE" else each for each in flags))
    assert done.returncode == 1
    assert message in done.stderr


@fresh_network
def test_a_node_is_programmed_from_a_recording(tmp_path: Path) -> None:
    file = tmp_path / "a.rec"
    do("ip", "link", "set", "lo", "up")
    do("ip", "address", "add", "192.168.100.10/32", "dev", "lo")
    with Running("--proxy-mode=nftables") as running:
        running.ready()
        assert record(file, "--duration", "0", *FLAGS).count("without the reports") == 0
        live = do("nft", "list", "ruleset")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert {each["path"] for each in entries if each["entry"] == "report"} == {
        "/status",
        "/configz",
        "/changes",
    }
    assert "192.168.100.10" in next(each["addresses"] for each in entries if each["entry"] == "node")
    assert [each["mode"] for each in entries[1]["documents"] if "mode" in each] == ["nftables"]
    do("nft", "flush", "ruleset")
    done = kproxy("run", "--once", "--replay", str(file), LIMIT_AS_IT_IS, "--healthz-bind-address", "")
    assert done.returncode == 0, done.stderr
    assert blocks(do("nft", "list", "ruleset")) == blocks(live)
