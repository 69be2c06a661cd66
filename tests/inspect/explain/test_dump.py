"""`kproxy explain --dump` compares with the rules of another machine, without root."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.cli.main import main
from tests.inspect.explain.test_command import manifests

__all__ = ["manifests"]

FLAGS = ("--cluster-cidr", "10.244.0.0/16", "--hostname-override", "node1")
QUESTION = ("10.244.1.10", "tcp", "shop/cart:http")
HOOKS = {
    "*mangle": (),
    "*filter": ("INPUT", "FORWARD", "OUTPUT"),
    "*nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
}


def saved(restore: str) -> str:
    """The input of iptables-restore as iptables-save prints it on a node that has these rules only."""
    text = []
    for table in re.split(r"(?m)^(?=\*)", restore)[1:]:
        name, *lines = table.splitlines()
        inserted = [line.replace("-I ", "-A ", 1) for line in lines if line.startswith("-I ")]
        others = [line for line in lines if line and not line.startswith(("-I ", ":", "COMMIT"))]
        chains = [line for line in lines if line.startswith(":")]
        hooks = [f":{hook} ACCEPT [0:0]" for hook in HOOKS[name]]
        rules = sorted([*reversed(inserted), *others], key=lambda line: line.split()[1])
        text += [name, *hooks, *chains, *rules, "COMMIT"]
    return "\n".join(text) + "\n"


@pytest.fixture
def dumped(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str, str]]:
    """Explain with a dump of the rules for the manifests, after a change of its text."""
    source = ("--manifests", str(manifests))
    rendered = CliRunner().invoke(main, ["render", *source, "--node", "node1", *FLAGS[:2]])
    assert rendered.exit_code == 0
    file = tmp_path_factory.mktemp("dump") / "rules"

    def run(*arguments: str, change: Callable[[str], str] = str) -> tuple[int, str, str]:
        file.write_text(change(saved(rendered.stdout)))
        result = CliRunner().invoke(main, ["explain", *source, *FLAGS, "--dump", str(file), *arguments])
        return result.exit_code, result.stdout, result.stderr

    return run


def test_equal_rules_agree_and_their_chains_are_shown(dumped: Callable[..., tuple[int, str, str]]) -> None:
    status, text, errors = dumped(*QUESTION)
    assert (status, errors) == (0, "")
    assert "  kernel    agrees\n" in text
    ways = [line for line in text.splitlines() if "PREROUTING → KUBE-SERVICES → KUBE-SVC-" in line]
    assert [way.rpartition(" → ")[2] for way in ways] == ["50 % 10.244.1.12:8080", "50 % 10.244.2.7:8080"]
    assert "KUBE-SEP" not in dumped("--rules", "node", "tcp", "shop/none")[1]
    assert "-j DNAT --to-destination 10.244.2.7:8080" in dumped("--rules", *QUESTION)[1]


def test_a_refusal_in_both_has_its_exit_code(dumped: Callable[..., tuple[int, str, str]]) -> None:
    status, text, _ = dumped("10.244.1.10", "tcp", "shop/none")
    assert status == 3
    assert "refused: the Service has no endpoint for this port" in text
    assert "  kernel    agrees\n" in text


def test_a_changed_endpoint_is_named_by_its_rule(dumped: Callable[..., tuple[int, str, str]]) -> None:
    def change(text: str) -> str:
        return text.replace("--to-destination 10.244.2.7:8080", "--to-destination 10.244.9.9:1")

    status, text, _ = dumped(*QUESTION, change=change)
    assert status == 2
    assert re.search(
        r"kernel    DIFFERS: nat KUBE-SEP-\w{4}… leads to 10.244.9.9:1, not to 10.244.2.7:8080\n", text
    )


def test_a_foreign_rule_that_drops_is_quoted(dumped: Callable[..., tuple[int, str, str]]) -> None:
    rule = "-A FORWARD -d 10.244.2.0/24 -j DROP\n"
    status, text, _ = dumped(
        *QUESTION, change=lambda text: text.replace("-A FORWARD", f"{rule}-A FORWARD", 1)
    )
    assert status == 2
    assert (
        "DIFFERS: 50 % of connections, what should go to 10.244.2.7:8080, is dropped by filter FORWARD: "
        in text
    )
    assert "-d 10.244.2.0/24 -j DROP" in text


def test_a_missing_jump_is_a_difference(dumped: Callable[..., tuple[int, str, str]]) -> None:
    status, text, _ = dumped(*QUESTION, change=lambda text: re.sub(r"-A PREROUTING .*\n", "", text))
    assert status == 2
    assert "the packet is not translated or refused by any rule, but should be forwarded" in text


def test_a_match_that_is_not_modelled_is_unknown(dumped: Callable[..., tuple[int, str, str]]) -> None:
    rule = "-A PREROUTING -m strange --option 1 -j DROP\n"

    def change(text: str) -> str:
        return text.replace("-A PREROUTING", f"{rule}-A PREROUTING", 1)

    status, text, _ = dumped(*QUESTION, change=change)
    assert status == 1
    assert "cannot tell" in text
    assert "strange" in text


def test_a_file_that_is_no_dump_is_an_error_beside_what_is_desired(
    dumped: Callable[..., tuple[int, str, str]],
) -> None:
    status, text, errors = dumped(*QUESTION, change=lambda _: "nothing\n")
    assert status == 1
    assert "10.244.1.12:8080" in text
    assert "not the output of iptables-save or nft -j list ruleset" in errors
