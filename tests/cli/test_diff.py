"""`kproxy diff` on real kernels: it tells what `kproxy run` does next, and does nothing itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kproxy.kernel import generations
from kproxy_lab.apiserver import ApiServer
from kproxy_lab.apiserver.manifests import load_manifests
from tests.cli.nodes import EXAMPLES, FLAGS, do, iptables, kproxy, rules, run_once
from tests.kernel.namespace import fresh_network

variants = pytest.mark.parametrize("variant", ["legacy", "nft"])
LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
WITHOUT_RIGHTS = ("setpriv", "--bounding-set", "-all")
WITHOUT_SYS_ADMIN = ("setpriv", "--bounding-set", "-sys_admin")


def told(*flags: str, through: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """Exit status and lines."""
    done = kproxy("diff", *FLAGS, *flags, through=through)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@variants
@pytest.mark.parametrize("layout", ["standard", "scalable"])
@fresh_network
def test_it_prints_what_a_first_sync_does_and_leaves_the_kernel_alone(variant: str, layout: str) -> None:
    flags = ["--iptables-variant", variant, "--iptables-layout", layout]
    before = rules(), generations.generation(), LOCALNET.read_text()
    status, lines = told(*flags)
    assert status == 2
    assert (rules(), generations.generation(), LOCALNET.read_text()) == before
    run_once(*flags)
    after = rules().splitlines()
    made = {line[1:].split()[0] for line in after if line.startswith((":KUBE-", ":KPROXY"))}
    assert {line.split("/")[1].split()[0] for line in lines if " chain " in line} == made
    jumps = [line for line in after if line.startswith("-A ") and not line.startswith("-A KUBE-")]
    assert len([line for line in lines if " rule " in line]) == len(jumps) > 20
    assert all(line.startswith(("+ ", "~ sysctl ")) for line in lines)
    assert told(*flags) == (0, [])


@fresh_network
def test_native_rules_of_others_are_no_difference() -> None:
    flags = ["--iptables-variant", "nft"]
    run_once(*flags)
    do("nft", "insert rule ip nat PREROUTING ct state established accept")
    do("nft", "insert rule ip6 filter FORWARD ct state established accept")
    before = generations.generation()
    assert told(*flags) == (0, [])
    do("nft", "flush chain ip nat KUBE-POSTROUTING")
    expected = ["~ IPv4 chain nat/KUBE-POSTROUTING (lacks 3 rules and has 0 not wanted)"]
    assert told(*flags) == (2, expected)
    assert generations.generation() == before + 1
    run_once(*flags)
    assert told(*flags) == (0, [])
    # The other variant is the mode's now: all of this one would go.
    status, lines = told("--iptables-variant", "legacy")
    assert status == 2
    assert any(line.startswith("- IPv4 nft chain nat/KUBE-SERVICES ") for line in lines)


@variants
@fresh_network
def test_each_damage_is_a_line_until_it_is_repaired(variant: str) -> None:
    flags = ["--iptables-variant", variant]
    run_once(*flags)
    jump = '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'
    iptables(variant, "-t nat -F KUBE-POSTROUTING")
    iptables(variant, "-t nat -D POSTROUTING 1")
    iptables(variant, "-A KUBE-FORWARD -j ACCEPT")
    iptables(variant, "-t nat -N KUBE-SEP-AAAAAAAAAAAAAAAA", six=True)
    iptables(variant, "-t nat -N MINE")
    iptables(variant, "-t nat -A OUTPUT -j MINE")
    expected = [
        "- IPv6 chain nat/KUBE-SEP-AAAAAAAAAAAAAAAA (0 rules)",
        f"+ IPv4 rule nat/POSTROUTING {jump}",
        "~ IPv4 chain filter/KUBE-FORWARD (lacks 0 rules and has 1 not wanted)",
        "~ IPv4 chain nat/KUBE-POSTROUTING (lacks 3 rules and has 0 not wanted)",
    ]
    status, lines = told(*flags)
    assert (status, sorted(lines)) == (2, sorted(expected))
    assert told(*flags, through=WITHOUT_SYS_ADMIN) == (status, lines)
    found = json.loads(kproxy("diff", *FLAGS, *flags, "-o", "json").stdout)
    assert [(c["sign"], c["object"], c["family"]) for c in found["changes"] if c["sign"] == "-"] == [
        ("-", "chain nat/KUBE-SEP-AAAAAAAAAAAAAAAA", "IPv6")
    ]
    assert len(found["changes"]) == len(expected)
    run_once(*flags)
    assert told(*flags) == (0, [])
    assert "-A OUTPUT -j MINE" in rules()


@variants
@fresh_network
def test_a_saved_dump_needs_no_root(variant: str, tmp_path: Path) -> None:
    flags = ["--iptables-variant", variant]
    run_once(*flags)
    saved = tmp_path / "saved"
    tmp_path.chmod(0o755)
    for options, name in ((["--ip-family", "4"], "iptables"), (["--ip-family", "6"], "ip6tables")):
        saved.write_text(do(f"{name}-{variant}-save", "-c"))
        against = [*flags, "--against", str(saved), *options]
        assert told(*against, through=WITHOUT_RIGHTS) == (0, [])
        dump = saved.read_text()
        saved.write_text("".join(x for x in dump.splitlines(keepends=True) if "-A KUBE-SERVICES" not in x))
        status, lines = told(*against, through=WITHOUT_RIGHTS)
        assert status == 2
        assert [line.split(" (")[0] for line in lines] == [
            f"~ IPv{options[1]} chain {table}/KUBE-SERVICES"
            for table in (("filter", "nat") if options[1] == "4" else ("nat",))
        ]
    saved.write_text("*nat\n:OUTPUT ACCEPT [0:0]\n")
    cut = kproxy("diff", *FLAGS, "--against", str(saved))
    assert (cut.returncode, "COMMIT" in cut.stderr) == (1, True)


@fresh_network
def test_the_api_server_is_asked_once(tmp_path: Path) -> None:
    do("ip", "link", "set", "lo", "up")
    with ApiServer() as api:
        api.apply_many(load_manifests(EXAMPLES))
        kubeconfig = str(api.kubeconfig(tmp_path / "kubeconfig"))
        flags = ["--kubeconfig", kubeconfig, *FLAGS[2:], "--iptables-variant", "nft"]
        done = kproxy("diff", *flags)
        assert (done.returncode, done.stderr) == (2, "")
        assert sorted(done.stdout.splitlines()) == sorted(told("--iptables-variant", "nft")[1])
        asked = [(r.verb, r.resource) for r in api.requests.all() if r.resource]
        assert sorted(asked) == [("list", "endpointslices"), ("list", "nodes"), ("list", "services")]
    gone = kproxy("diff", *flags)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "127.0.0.1" in gone.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--proxy-mode", "magic"], "magic"),
        (["--cluster-cidr", "10.0.0.0/40"], '--cluster-cidr: "10.0.0.0/40"'),
        (["--proxy-mode", "ipvs", "--against", __file__], "--against"),
        (["--against", __file__], "not a line of a dump"),
        (["--detect-local-mode", "NodeCIDR", "--hostname-override", "nobody"], "no Node nobody"),
    ],
)
def test_an_unknown_difference_ends_with_1(flags: list[str], said: str) -> None:
    done = kproxy("diff", *FLAGS, *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


# IPVS ---------------------------------------------------------------------------------------------------


def _virtual() -> str:
    held = do("ip", "-o", "address", "show", "dev", "kube-ipvs0")
    return do("ipvsadm", "-Sn") + do("ipset", "save", "-sorted") + held


@pytest.mark.ipvs
@fresh_network
def test_ipvs_differences_and_the_way_to_another_mode() -> None:
    do("ip", "link", "set", "lo", "up")
    flags = ["--proxy-mode", "ipvs", "--iptables-variant", "legacy"]
    status, lines = told(*flags)
    assert status == 2
    assert {"+ device kube-ipvs0", "+ address 10.96.0.80 on kube-ipvs0"} < set(lines)
    assert (do("ipvsadm", "-Sn"), do("ipset", "list", "-n")) == ("", "")
    run_once(*flags)
    made = [line for line in do("ipvsadm", "-Sn").splitlines() if line.startswith("-A ")]
    assert len([line for line in lines if line.startswith("+ virtual server ")]) == len(made) > 5
    assert told(*flags) == (0, [])
    do("ipvsadm", "-D", "-t", "10.96.0.80:80")
    do("ipvsadm", "-A", "-t", "10.96.9.9:1", "-s", "rr")
    do("ipvsadm", "-A", "-t", "192.0.2.99:1", "-s", "rr")
    do("ipset", "add", "KPROXY-CLUSTER-IP", "10.96.9.9,tcp:1")
    do("ipset", "flush", "KPROXY-LOOP-BACK")
    do("ip", "address", "del", "10.96.0.80/32", "dev", "kube-ipvs0")
    stood = _virtual()
    status, lines = told(*flags)
    assert (status, [line.split(" (")[0] for line in lines]) == (2, [
        "+ address 10.96.0.80 on kube-ipvs0",
        "~ set KPROXY-CLUSTER-IP", "~ set KPROXY-LOOP-BACK",
        "+ virtual server TCP 10.96.0.80 port 80", "- virtual server TCP 10.96.9.9 port 1",
    ])  # fmt: skip
    assert _virtual() == stood
    run_once(*flags)
    assert told(*flags) == (0, [])
    _, draining = told("--iptables-variant", "legacy")
    assert any(x.startswith("~ destination TCP 10.96.0.80") and "to drain" in x for x in draining)
    _, leaving = told("--iptables-variant", "legacy", "--ipvs-graceful-period", "0")
    assert {"- device kube-ipvs0", "- virtual server TCP 10.96.0.80 port 80"} < set(leaving)
    assert not any("192.0.2.99" in line for line in (*draining, *leaving))


NFTABLES = ("--proxy-mode", "nftables")


@fresh_network
def test_in_nftables_mode_elements_and_chains_are_printed() -> None:
    status, lines = told(*NFTABLES)
    assert status == 2
    assert all(line.startswith(("+ ", "~ sysctl ")) for line in lines)
    assert "+ IPv4 table ip kproxy" in lines
    run_once(*NFTABLES)
    commits = generations.generation()
    assert told(*NFTABLES) == (0, [])
    assert generations.generation() == commits
    do("nft", "add", "element", "ip", "kproxy", "endpoint-0", "{ 10.9.9.9 . 6 . 80 : 10.1.1.1 . 80 }")
    do("nft", "flush", "chain", "ip", "kproxy", "nat-output")
    do("nft", "add", "table", "ip", "mine")
    do("nft", "add", "table", "ip6", "kproxy", "{ flags dormant; }")
    assert told(*NFTABLES) == (
        2,
        [
            "~ IPv4 chain nat-output (lacks 1 rule and has 0 not wanted)",
            "- IPv4 element endpoint-0 10.9.9.9 . 6 . 80 (10.1.1.1 . 80)",
            "~ IPv6 table ip6 kproxy (is dormant)",
        ],
    )
    run_once(*NFTABLES)
    assert told(*NFTABLES) == (0, [])


@fresh_network
def test_what_a_former_mode_left_is_printed_too() -> None:
    run_once(*NFTABLES)
    _, lines = told()
    assert [line for line in lines if "kproxy" in line] == ["- table ip kproxy", "- table ip6 kproxy"]
    run_once("--iptables-variant", "nft")
    status, lines = told("--iptables-variant", "legacy")
    assert status == 2
    assert "- IPv4 nft chain nat/KUBE-SERVICES" in " ".join(lines)
    run_once("--iptables-variant", "legacy")
    assert told("--iptables-variant", "legacy") == (0, [])
    assert "KUBE-SERVICES" not in do("iptables-nft-save")
    status, lines = told(*NFTABLES)
    assert status == 2
    assert "- IPv4 chain nat/KUBE-SERVICES" in " ".join(lines)
    run_once(*NFTABLES)
    assert told(*NFTABLES) == (0, [])


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@fresh_network
def test_kernel_parameters_are_printed_until_they_are_set(mode: str) -> None:
    flags = ["--proxy-mode", mode, "--conntrack-tcp-be-liberal", "--conntrack-udp-timeout=45s"]
    ours = {
        "udp_timeout": "30 -> 45",
        "tcp_be_liberal": "0 -> 1",
        "tcp_timeout_established": "432000 -> 86400",
        "tcp_timeout_close_wait": "60 -> 3600",
    }
    told_of = {f"~ sysctl net/netfilter/nf_conntrack_{name} ({value})" for name, value in ours.items()}
    assert told_of <= set(told(*flags)[1])
    run_once(*flags)
    assert told(*flags) == (0, [])


@fresh_network
def test_a_kernel_parameter_that_cannot_be_set_is_no_change_but_said() -> None:
    run_once()
    Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").write_text("31")
    readonly = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    through = ("unshare", "--mount", "sh", "-c", readonly, "sh")
    done = kproxy("diff", *FLAGS, "--conntrack-udp-timeout=45s", through=through)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "warning: sysctl net/netfilter/nf_conntrack_udp_timeout: is 31, not 45 and cannot be set here; "
        "sysctl -w net.netfilter.nf_conntrack_udp_timeout=45\n"
    )
