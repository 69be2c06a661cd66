"""One declaration of each setting: what `--help`, the docs and the resolved configuration take from it."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.cli.main import main
from kproxy.cli.params import flag_name
from kproxy.cli.run import run
from kproxy.config.codec import flatten
from kproxy.config.declarations import Declaration, by_flag, declarations, every_declaration
from kproxy.config.documents import Settings
from kproxy.config.model import ProxyConfig
from kproxy.config.process_flags import ProcessFlags
from kproxy.config.reference import BEGIN, END, reference
from kproxy.config.schema import KproxyConfiguration, KubeProxyConfiguration
from kproxy.config.settings import Group, Section
from kproxy.config.translate import proxy_config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
KINDS: list[type[Section]] = [KubeProxyConfiguration, KproxyConfiguration, ProcessFlags]


def test_masquerading_uses_the_bit_of_kube_proxy_in_every_mode_and_nothing_is_replayed() -> None:
    settings = Settings()
    assert (settings.kube.iptables.masquerade_bit, settings.kube.nftables.masquerade_bit) == (14, 14)
    config = proxy_config(settings, host="node-a")
    assert (config.replay, config.replay_until, config.once, config.once_timeout) == (None, 0, False, 0.0)


def told(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, prog_name="kproxy", terminal_width=80)
    assert isinstance(result.exception, SystemExit) or result.exit_code == 0, result.exception
    return result.output


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_declares_a_setting(kind: type[Section]) -> None:
    assert [each.path for each in declarations(kind)] == [path for path, _ in flatten(kind())]


def test_a_flag_belongs_to_one_document() -> None:
    flags = [flag for kind in KINDS for flag in by_flag(kind)]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_share_a_flag_agree(kind: type[Section]) -> None:
    for first, *others in by_flag(kind).values():
        for other in others:
            assert (other.default, other.setting.live) == (first.default, first.setting.live)


@pytest.mark.parametrize("declared", every_declaration(), ids=lambda each: each.path)
def test_a_setting_says_what_it_means_in_a_sentence(declared: Declaration) -> None:
    assert re.fullmatch(r"\S.*[^.]\.{1,3}", declared.setting.help)
    assert declared.setting.effect == (declared.group is not Group.IGNORED)


def test_the_resolved_configuration_has_the_defaults_of_the_schema() -> None:
    assert proxy_config(Settings(), host="n", once_timeout=0.0) == ProxyConfig(node_name="n")


def test_the_reference_in_the_documentation_is_that_of_the_declarations() -> None:
    _, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN + "\n")
    shown, end, _ = rest.partition(END)
    assert begin, f"{PAGE.name} has no line {BEGIN}"
    assert end, f"{PAGE.name} has no line {END}"
    assert shown.strip() == reference().strip(), "python -m kproxy.config.reference prints what belongs there"


def test_help_lists_every_flag_once_under_its_heading() -> None:
    text = told("run", "--help")
    sections = re.split(r"^(\S[^\n]*):\n", text, flags=re.MULTILINE)
    headings = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert [heading for heading in headings if heading != "Options"] == [group.value for group in Group]
    flags = {first.setting.flag: first.group for kind in KINDS for first, *_ in by_flag(kind).values()}
    for group in Group:
        entries = headings[group.value].partition("\n\n")[0]
        listed = re.findall(r"^  (?:-\w, )?--([a-z0-9-]+)", entries, flags=re.MULTILINE)
        assert sorted(listed) == sorted(flag for flag, its in flags.items() if its is group)
    assert {flag_name(option) for option in run.params} == {*flags, "version"}


@pytest.mark.parametrize("command", ["run", "check", "diff", "render"])
def test_help_fits_the_terminal(command: str) -> None:
    assert [line for line in told(command, "--help").splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--proxy-mode [iptables|ipvs|nftables|ebpf]", "Proxy mode. [default: iptables]"),
        ("--detect-local-mode", "How local pod traffic is detected. [default: ClusterCIDR]"),
        ("--bind-address-hard-fail BOOLEAN", "Exit if a bind address is unavailable."),
        ("--vmodule PATTERN=LEVEL,...", "Accepted for compatibility; ignored."),
        ("--ipvs-graceful-period DURATION", "[default: 1h]"),
        ("--conntrack-tcp-timeout-established DURATION", "[default: 24h]"),
        ("--iptables-min-sync-period DURATION", "[default: 100ms]"),
        ("--oom-score-adj N", "[default: -999]"),
        ("--iptables-localhost-nodeports BOOLEAN", "[default: true]"),
        ("-v, --v LEVEL", "Log verbosity; 4 logs every sync. [default: 0]"),
    ],
)
def test_help_says_value_meaning_and_default(line: str, words: str) -> None:
    _, found, rest = told("run", "--help").partition(line + " ")
    if not found:
        _, found, rest = told("run", "--help").partition(line + "\n")
    entry = re.split(r"^  -", rest, maxsplit=1, flags=re.MULTILINE)[0]
    assert found
    assert words in " ".join(entry.split())


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--cluster-cidr=10.0.0.0/33", '"10.0.0.0/33" is no CIDR: prefix length 33 is out of range for IPv4'),
        ("--ipvs-exclude-cidrs=10.0.0.0", "is not a CIDR"),
        ("--ipvs-graceful-period=-1s", '"-1s" is negative'),
        ("--ipvs-scheduler=fastest", '"fastest" is not one of rr, wrr'),
        ("--ipvs-tcp-timeout=500ms", "is not 0 (leave as it is) or 1s to"),
        ("--ipvs-udp-timeout=300000h", "is not 0 (leave as it is) or 1s to"),
        ("--iptables-masquerade-bit=32", "32 is not within 0 and 31"),
        ("--iptables-sync-period=0", '"0" is not greater than 0'),
        ("--metrics-service-limit=-1", "-1 is negative"),
        ("--nodeport-addresses=nonsense", "is not a CIDR"),
        ("--service-cidr=10.96.0.0", "is not a CIDR"),
        ("--timeout=5m", "is for --once"),
        ("--timeout=soon", '"soon" is not a duration such as 30s, 1m30s or 100ms'),
    ],
)
def test_a_bad_flag_is_named_once_with_its_value(flag: str, expected: str) -> None:
    name = flag.partition("=")[0]
    (line,) = [line for line in told("run", flag).splitlines() if line.startswith("Error: ")]
    assert re.match(rf"Error: {name}(\[0\])?: ", line)
    assert line.count(name) == 1
    assert expected in line
