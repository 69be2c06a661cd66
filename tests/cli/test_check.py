"""`kproxy check` on real kernels: a node with nothing wrong, and each thing that can be wrong made wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.inspect.preflight import probes
from kproxy.inspect.preflight.evaluate import feature_findings
from kproxy.kernel import generations
from kproxy.kernel.xtables import legacy_rules
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.ipvs.preflight import features as ipvs_features
from kproxy.modes.rule_features import PROBE_NAME, Feature
from kproxy_lab.apiserver import ApiServer
from kproxy_lab.apiserver.access import write_kubeconfig
from tests.cli.nodes import EXAMPLES, LIMIT_AS_IT_IS, do, iptables, kproxy, rules
from tests.kernel.namespace import fresh_network

OFFLINE = ["--manifests", str(EXAMPLES), LIMIT_AS_IT_IS]
FORWARDING = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]
AS_AT_BOOT = {
    "ipv4/conf/all/route_localnet": "0",
    "netfilter/nf_conntrack_tcp_timeout_established": "432000",
    "netfilter/nf_conntrack_tcp_timeout_close_wait": "60",
}
variants = pytest.mark.parametrize("variant", ["legacy", "nft"])


def good_node() -> None:
    """Set what a node of a cluster has set before a proxy comes."""
    do("ip", "link", "set", "lo", "up")
    for path in FORWARDING:
        path.write_text("1")


def check(*flags: str, through: tuple[str, ...] = ()) -> tuple[int, dict[str, list[str]]]:
    """Exit status, and "subject: found" by level."""
    done = kproxy("check", *flags, "-o", "json", through=through)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["passed"] == (done.returncode == 0)
    found: dict[str, list[str]] = {"ok": [], "warning": [], "error": []}
    for each in report["findings"]:
        found[each["level"]].append(f"{each['subject']}: {each['found']}")
        assert bool(each["remedy"]) == (each["level"] != "ok"), each
    return done.returncode, found


def begins(found: list[str], *starts: str) -> bool:
    return len(found) == len(starts) and all(map(str.startswith, found, starts))


@variants
@pytest.mark.parametrize("through", [(), ("setpriv", "--bounding-set", "-sys_admin")])
@fresh_network
def test_a_node_with_nothing_wrong_is_left_as_it_was(variant: str, through: tuple[str, ...]) -> None:
    good_node()
    iptables(variant, "-t nat -A POSTROUTING -j RETURN")
    iptables(variant, "-t filter -A INPUT -j ACCEPT", six=True)
    before, tables = rules(), [generations.legacy_tables(family) for family in Family]
    commits = generations.generation()
    status, found = check(*OFFLINE, "--iptables-variant", variant, through=through)
    assert (status, found["warning"], found["error"]) == (0, [], [])
    assert begins(
        found["ok"][:6],
        "permissions:", f"iptables IPv4: variant {variant}", f"iptables IPv6: variant {variant}",
        "rules IPv4: 14 matches and targets work", "rules IPv6: 14 matches and targets work", "conntrack:",
    )  # fmt: skip
    if through:
        assert PROBE_NAME not in rules()
    else:
        assert (generations.generation(), rules()) == (commits, before)
        assert [generations.legacy_tables(family) for family in Family] == tables


@fresh_network
def test_the_same_as_text() -> None:
    good_node()
    done = kproxy("check", *OFFLINE)
    assert done.returncode == 0
    assert "ok        permissions: the capabilities that are needed are there\n" in done.stdout
    FORWARDING[0].write_text("0")
    done = kproxy("check", *OFFLINE)
    assert done.returncode == 0
    assert (
        "warning   sysctl net/ipv4/ip_forward: is 0, not 1; needed so that IPv4 packets are forwarded\n"
        "          remedy: sysctl -w net.ipv4.ip_forward=1\n"
    ) in done.stdout


@variants
@fresh_network
def test_without_the_capability_nothing_is_tried(variant: str) -> None:
    good_node()
    lacking = ("setpriv", "--bounding-set", "-net_admin")
    status, found = check(*OFFLINE, "--iptables-variant", variant, through=lacking)
    assert status == 1
    assert found["error"] == ["permissions: the process does not have CAP_NET_ADMIN"]
    assert begins(found["ok"], "iptables IPv4", "iptables IPv6")


@fresh_network
def test_parameters_that_cannot_be_set() -> None:
    good_node()
    for name, value in AS_AT_BOOT.items():  # a new namespace has the values of the machine's own
        Path("/proc/sys/net", name).write_text(value)
    FORWARDING[0].write_text("0")
    readonly = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    through = ("unshare", "--mount", "sh", "-c", readonly, "sh")
    status, found = check(*OFFLINE, through=through)
    assert status == 0
    assert begins(
        found["warning"],
        "sysctl net/ipv4/conf/all/route_localnet: is 0, not 1 and cannot be set",
        "sysctl net/netfilter/nf_conntrack_tcp_timeout_established: is 432000, not 86400 and cannot be set",
        "sysctl net/netfilter/nf_conntrack_tcp_timeout_close_wait: is 60, not 3600 and cannot be set",
        "sysctl net/ipv4/ip_forward: is 0, not 1;",
    )
    timeouts = ["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"]
    status, found = check(*OFFLINE, *timeouts, "--iptables-localhost-nodeports=false", through=through)
    assert begins(found["warning"], "sysctl net/ipv4/ip_forward")


@fresh_network
def test_programs_that_are_not_installed() -> None:
    good_node()
    iptables("legacy", "-A INPUT -j ACCEPT")

    def without(*programs: str) -> tuple[str, ...]:
        hidden = [f"mount --bind /dev/null $(readlink -f $(command -v {program}))" for program in programs]
        return ("unshare", "--mount", "sh", "-c", " && ".join([*hidden, 'exec "$@"']), "sh")

    status, found = check(*OFFLINE, through=without("iptables-nft"))
    assert (status, found["warning"]) == (0, [])
    assert begins(found["ok"][1:3], "iptables IPv4: variant legacy", "iptables IPv6: variant legacy")
    status, found = check(*OFFLINE, "--iptables-variant", "nft", through=without("iptables-nft"))
    assert status == 1
    assert begins(found["error"], "iptables IPv4: variant nft was asked for", "iptables IPv6: variant nft")
    status, found = check(*OFFLINE, through=without("iptables-nft", "iptables-legacy"))
    assert status == 1
    assert begins(found["error"], "iptables IPv4: neither ", "iptables IPv6: neither ")


@fresh_network
def test_nftables_mode_is_tried_as_a_whole() -> None:
    good_node()
    commits = rules()
    status, found = check(*OFFLINE, "--proxy-mode", "nftables")
    assert (status, found["error"]) == (0, [])
    assert begins(found["ok"][1:3], "nftables IPv4: all maps", "nftables IPv6: all maps")
    assert rules() == commits
    hidden = (
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind /dev/null "$(command -v nft)" && exec "$@"',
        "sh",
    )
    assert check(*OFFLINE, "--proxy-mode", "nftables", through=hidden) == (status, found)


@fresh_network
def test_a_family_that_is_disabled_is_a_warning() -> None:
    good_node()
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    status, found = check(*OFFLINE)
    assert status == 0
    assert begins(found["warning"], "iptables IPv6: IPv6 is disabled")


@fresh_network
def test_rules_of_both_variants_at_once() -> None:
    good_node()
    for n in range(3):
        iptables("nft", f"-A INPUT -p tcp --dport {n + 1} -j ACCEPT")
    iptables("legacy", "-t nat -A OUTPUT -j RETURN")
    iptables("legacy", "-t nat -A OUTPUT -j ACCEPT", six=True)
    status, found = check(*OFFLINE)
    assert status == 0
    assert found["warning"] == [
        "iptables variants: both are in use at once (IPv4: legacy 1 in nat, nft 3 in filter)"
    ]


@fresh_network
def test_the_legacy_tables_are_counted_alike_with_and_without_python_iptables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("iptc", reason="python-iptables is not installed")
    assert [legacy_rules.count(family) for family in Family] == [{}, {}]
    assert [generations.legacy_tables(family) for family in Family] == [(), ()]
    iptables("legacy", "-t nat -N KUBE-SERVICES")
    iptables(
        "legacy", "-t nat -A KUBE-SERVICES -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.1.1:80"
    )
    iptables("legacy", "-t nat -A PREROUTING -m conntrack --ctstate NEW -j KUBE-SERVICES")
    iptables("legacy", "-A INPUT -m statistic --mode random --probability 0.5 -j ACCEPT")
    iptables("legacy", "-A INPUT -j DROP -m recent --name x --rcheck")
    iptables("legacy", "-A FORWARD -j DROP", six=True)
    before = rules()
    expected = [
        {"nat": {"KUBE-SERVICES": 1, "PREROUTING": 1}, "filter": {"INPUT": 2}}, {"filter": {"FORWARD": 1}},
    ]  # fmt: skip
    assert [legacy_rules.count(family) for family in Family] == expected
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert [legacy_rules.count(family) for family in Family] == expected
    assert rules() == before


@fresh_network
def test_what_other_proxies_left(tmp_path: Path) -> None:
    good_node()
    do("nft", "add", "table", "ip6", "kube-proxy")
    do("ip", "link", "add", "cilium_host", "type", "bridge")
    do("ip", "link", "add", "kube-dummy-if", "type", "bridge")
    program = shutil.copy("/bin/sleep", tmp_path / "kube-proxy")
    with subprocess.Popen([program, "600"]) as running:
        try:
            status, found = check(*OFFLINE)
        finally:
            running.kill()
    assert status == 0
    assert begins(
        found["warning"],
        "kube-proxy: it runs here, as process ",
        "kube-proxy: its nftables mode left rules (nftables tables IPv6 ",
        "Cilium: interface cilium_host", "kube-router's service proxy: interface kube-dummy-if",
    )  # fmt: skip
    assert f"process {running.pid}," in found["warning"][0]


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("family", list(Family))
@fresh_network
def test_a_missing_feature_is_distinguished_from_those_that_are_there(
    variant: Variant, family: Family
) -> None:
    xtables = SubprocessXtables(family, find_tools(family, variant))
    absent = Feature("match nosuch", "nat", "-m nosuch", "xt_nosuch")
    refused = Feature("match set", "nat", "-m set --match-set nosuch dst", "xt_set")
    features = (*ipvs_features(family, "auto"), absent, refused)
    tried = probes.probe_rules(xtables, features)
    assert [feature.name for feature, trial in tried if trial.refusal] == ["match nosuch", "match set"]
    findings = list(feature_findings(family, tried))
    assert "extension nosuch" in findings[1].remedy
    assert "modprobe xt_set" in findings[2].remedy
    assert PROBE_NAME not in rules()
    assert PROBE_NAME not in do("ipset", "list", "-n")


@fresh_network
def test_a_device_of_another_type_in_the_way() -> None:
    good_node()
    do("ip", "link", "add", "kube-ipvs0", "type", "bridge")
    status, found = check(*OFFLINE, "--proxy-mode", "ipvs")
    assert status == 1
    assert "interface kube-ipvs0: it exists and is of type bridge, not dummy" in found["error"]
    assert "kube-ipvs0" in do("ip", "-br", "link")


@pytest.mark.ipvs
@fresh_network
def test_ipvs_on_a_kernel_that_has_it() -> None:
    good_node()
    flags = [*OFFLINE, "--proxy-mode", "ipvs", "--iptables-variant", "legacy"]
    before = rules()
    status, found = check(*flags)
    assert (status, found["warning"], found["error"]) == (0, [], [])
    assert "sets: types work: hash:ip, hash:ip,port, hash:ip,port,ip, hash:ip,port,net" in found["ok"]
    assert any(line.startswith("IPVS: schedulers: ") and " rr," in line for line in found["ok"])
    assert (do("ipvsadm", "-Sn"), do("ipset", "list", "-n"), rules()) == ("", "", before)
    status, found = check(*flags, through=("setpriv", "--bounding-set", "-sys_admin"))
    assert (status, found["warning"], found["error"]) == (0, [], [])
    assert (do("ipvsadm", "-Sn"), do("ipset", "list", "-n")) == ("", "")
    assert PROBE_NAME not in rules()
    assert "kproxy-probe0" not in do("ip", "-br", "link")


# The cluster --------------------------------------------------------------------------------------------


@contextmanager
def reviewing_server(denied: Collection[str]) -> Iterator[str]:
    """An API server that knows its version and denies "verb resource", and the URL of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            named = self.path == "/api/v1/nodes?fieldSelector=metadata.name%3Dnode-a"
            self._answer(200, {"items": [{}] if named else []} | {"gitVersion": "v1.36.2"})

        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = review["spec"]["resourceAttributes"]
            allowed = f"{asked['verb']} {asked['resource']}" not in denied
            self._answer(201, {**review, "status": {"allowed": allowed}})

        def _answer(self, code: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("denied", "status", "obstacles", "warnings"),
    [
        ([], 0, [], []),
        (["watch services"], 1, ["permissions in the cluster: may not watch services"], []),
        (
            ["list endpointslices", "list nodes"], 1,
            ["permissions in the cluster: may not list endpointslices.discovery.k8s.io",
             "permissions in the cluster: may not list nodes node-a"], [],
        ),
        (["create events"], 0, [], ["permissions in the cluster: may not create events.events.k8s.io"]),
    ],
)  # fmt: skip
@fresh_network
def test_what_the_api_server_allows(
    denied: list[str], status: int, obstacles: list[str], warnings: list[str], tmp_path: Path
) -> None:
    good_node()
    with reviewing_server(denied) as url:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", url, token="secret")  # noqa: S106
        got, found = check("--kubeconfig", str(kubeconfig), "--hostname-override", "node-a")
    assert got == status
    assert found["error"] == obstacles
    assert len(found["warning"]) == len(warnings)
    assert begins(found["warning"], *warnings)
    assert f"API server: {url} answers, version v1.36.2" in found["ok"]


@fresh_network
def test_an_api_server_that_is_missing_or_denies_access(tmp_path: Path) -> None:
    good_node()
    with ApiServer(tokens=["right"]) as api:
        good = api.kubeconfig(tmp_path / "good")
        bad = write_kubeconfig(tmp_path / "bad", api.url, token="wrong")  # noqa: S106
        assert check("--kubeconfig", str(good))[0] == 0
        status, found = check("--kubeconfig", str(bad))
        assert (status, found["error"][0].partition(": ")[2][:4]) == (1, "401 ")
    status, found = check("--kubeconfig", str(good))
    assert status == 1
    assert begins(found["error"], f"API server: {api.url}: ")
    status, found = check("--kubeconfig", str(tmp_path / "none"))
    assert (status, len(found["error"])) == (1, 1)
    assert "none cannot be used" in found["error"][0]


@fresh_network
def test_the_api_server_s_address_can_be_a_flag(tmp_path: Path) -> None:
    good_node()
    with ApiServer() as api:
        elsewhere = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")
        for flags in (["--master", api.url], ["--master", api.url, "--kubeconfig", str(elsewhere)]):
            status, found = check(*flags)
            assert (status, found["error"]) == (0, [])
            assert any(line.startswith(f"API server: {api.url} answers") for line in found["ok"])
            assert begins(found["warning"], "node: the API server knows no Node ")
        api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}})
        status, found = check("--master", api.url, "--hostname-override", "Node-A")
        assert (status, found["warning"], "node: the API server knows node-a" in found["ok"]) == (0, [], True)
        done = kproxy("diff", "--master", api.url, "--hostname-override", "node-a", LIMIT_AS_IT_IS)
        assert done.returncode == 2, done.stderr


def test_bad_flags_are_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kproxy", "check", *OFFLINE, "--ipvs-scheduler", "quickest"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, '--ipvs-scheduler: "quickest"' in done.stderr) == (1, True)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@fresh_network
def test_the_limit_of_tracked_connections_is_looked_at(mode: str) -> None:
    good_node()
    flags = ["--manifests", str(EXAMPLES), "--proxy-mode", mode]
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text().strip()
    huge = ["--conntrack-max-per-core=1", "--conntrack-min=999999999"]
    status, found = check(*flags, *huge)
    assert status == 0
    told = f"sysctl net/netfilter/nf_conntrack_max: is {limit}, not 999999999 and cannot be set; needed so"
    assert next(line for line in found["warning"] if "nf_conntrack_max" in line).startswith(told)
    status, found = check(*flags, "--conntrack-max-per-core=1", "--conntrack-min=1")
    assert not any("nf_conntrack_max" in line for line in found["warning"])


@variants
@fresh_network
def test_an_extension_that_libxtables_lacks_is_named(
    variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("iptc", reason="python-iptables is not installed")
    good_node()
    flags = [*OFFLINE, "--iptables-variant", variant]
    told = "libxtables has all 14, in these revisions: comment 0, conntrack 3,"
    assert begins(
        [each for each in check(*flags)[1]["ok"] if each.startswith("extension")],
        f"extensions IPv4: {told}",
        f"extensions IPv6: {told}",
    )
    (original,) = Path("/usr/lib").glob("*/xtables")
    for file in original.iterdir():
        if file.name != "libxt_recent.so":
            (tmp_path / file.name).symlink_to(file)
    monkeypatch.setenv("XTABLES_LIBDIR", str(tmp_path))
    status, found = check(*flags)
    assert status == 0
    told = "libxtables cannot load its shared object"
    assert [each for each in found["warning"] if each.startswith("extension")] == [
        f"extension match recent IPv4: {told}",
        f"extension match recent IPv6: {told}",
    ]
