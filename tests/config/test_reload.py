"""A changed file: what is applied, what is named as needing a restart, and what is refused."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest
from structlog.testing import capture_logs

from kproxy.config.codec import flatten
from kproxy.config.desired import Refusal, ReportedStatus
from kproxy.config.documents import read_documents
from kproxy.config.loading import CommandLine
from kproxy.config.model import ProxyConfig
from kproxy.config.refusals import SettingRefused
from kproxy.config.reload import LIVE, LIVE_OWN, Reloader, changes_between
from kproxy.config.schema import KproxyConfiguration, KubeProxyConfiguration
from kproxy.kernel.xtables.types import Variant

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OWN_HEAD = "---\napiVersion: kproxy.io/v1alpha1\nkind: KproxyConfiguration\n"


def test_what_is_said_to_be_live_exists() -> None:
    assert {path for path, _ in flatten(KubeProxyConfiguration())} >= LIVE
    assert {path for path, _ in flatten(KproxyConfiguration())} >= LIVE_OWN


@pytest.mark.parametrize(
    ("old", "new", "applied", "restart"),
    [
        ("", "", (), ()),
        ("", "iptables: {masqueradeAll: true}", ("iptables.masqueradeAll",), ()),
        ("ipvs: {scheduler: wlc}", "", ("ipvs.scheduler",), ()),
        ("", "mode: ipvs", ("mode",), ()),
        ("mode: iptables", "mode: ''", (), ()),
        ("", "hostnameOverride: b", (), ("hostnameOverride",)),
        ("", "clientConnection: {kubeconfig: /k}", (), ("clientConnection.kubeconfig",)),
        ("", "healthzBindAddress: 0.0.0.0:1", (), ("healthzBindAddress",)),
        ("", "conntrack: {tcpBeLiberal: true, min: 1}", ("conntrack.min",), ("conntrack.tcpBeLiberal",)),
        ("", "logging: {format: json}", ("logging.format",), ()),
        ("", "configSyncPeriod: 1m", ("configSyncPeriod",), ()),
        ("", "featureGates: {A: true}", ("featureGates",), ()),
        (
            "",
            "mode: iptables\n" + OWN_HEAD + "externalIPs: {allowedCIDRs: [10.0.0.0/8]}",
            ("KproxyConfiguration externalIPs.allowedCIDRs",),
            (),
        ),
        (
            "",
            "mode: ipvs\nhostnameOverride: b\nclusterCIDR: 10.0.0.0/8\n"
            + OWN_HEAD
            + "ipvs: {gracefulPeriod: 1m}\niptables: {variant: nft}\nmetrics: {serviceLimit: 1}",
            (
                "mode",
                "clusterCIDR",
                "KproxyConfiguration ipvs.gracefulPeriod",
                "KproxyConfiguration iptables.variant",
            ),
            ("hostnameOverride", "KproxyConfiguration metrics.serviceLimit"),
        ),
    ],
)
def test_changes_are_sorted(old: str, new: str, applied: tuple[str, ...], restart: tuple[str, ...]) -> None:
    (before, _), (after, defects) = read_documents(HEAD + old), read_documents(HEAD + new)
    assert defects == []
    changes = changes_between(before, after)
    assert set(changes.applied) == set(applied)
    assert set(changes.restart) == set(restart)
    again = changes_between(changes.settings, after)
    assert (again.applied, set(again.restart)) == ((), set(restart))


class Running:
    """A reloader over a real file; what it applies comes out of a queue."""

    def __init__(self, file: Path, **flags: object) -> None:
        self.file = file
        self.applied: SimpleQueue[ProxyConfig] = SimpleQueue()
        given = CommandLine(file, flags)
        self.reloader = Reloader(given, given.load(), self._apply)
        self._requests = 0
        self.reported = ReportedStatus()

    def _apply(self, config: ProxyConfig) -> int:
        self.applied.put(config)
        self._requests += 1
        return self._requests

    def refuse(self, request: int, kept: ProxyConfig) -> None:
        """Report that the mode of this request could not start, as the run loop does; have it read."""
        ended = threading.Event()
        ended.set()
        self.reported.report(Refusal(request, kept, "no IPVS here"))
        self.reloader.follow(self.reported, ended)

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self.reloader.watch, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def running(tmp_path: Path) -> Running:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + "clusterCIDR: 10.1.0.0/16\n")
    return Running(file, **{"hostname-override": "node-a"})


def test_what_changed_is_applied_and_the_rest_stays(running: Running) -> None:
    running.file.write_text(HEAD + "clusterCIDR: 10.2.0.0/16\nmode: ipvs\nhealthzBindAddress: 0.0.0.0:1\n")
    with capture_logs() as logs:
        running.reloader.reload("SIGHUP")
    config = running.applied.get(timeout=0)
    assert (config.cluster_cidrs, config.proxy_mode, config.node_name, config.healthz_bind_address) == (
        ("10.2.0.0/16",),
        "ipvs",
        "node-a",
        "0.0.0.0:10256",
    )
    assert [line["event"] for line in logs] == ["configuration_reloaded", "restart_needed"]
    assert set(logs[0]["applied"]) == {"clusterCIDR", "mode"}
    assert logs[1]["settings"] == ["healthzBindAddress"]


def test_a_file_that_says_the_same_changes_nothing(running: Running) -> None:
    running.file.write_text(HEAD + "# a comment\nclusterCIDR: '10.1.0.0/16'\nipvs: {}\n")
    with capture_logs() as logs:
        running.reloader.reload("SIGHUP")
    assert running.applied.empty()
    assert [line["event"] for line in logs] == ["configuration_unchanged"]
    with capture_logs() as logs:
        running.reloader.reload("the file changed", first=True)
    assert logs == []


@pytest.mark.parametrize("content", ["clusterCIDR: 10.2.0.0/40\nfoo: 1\n", ": [", None])
def test_a_bad_file_changes_nothing_and_is_logged_once(running: Running, content: str | None) -> None:
    if content is None:
        running.file.unlink()
    else:
        running.file.write_text(HEAD + content)
    with capture_logs() as logs:
        running.reloader.reload("SIGHUP")
        running.reloader.reload("SIGHUP")
    assert running.applied.empty()
    assert [line["event"] for line in logs] == ["configuration_rejected"]
    assert all(str(running.file) in problem for problem in logs[0]["problems"])
    running.file.write_text(HEAD + "clusterCIDR: 10.3.0.0/16\n")
    running.reloader.reload("SIGHUP")
    assert running.applied.get(timeout=0).cluster_cidrs == ("10.3.0.0/16",)


@pytest.mark.parametrize("content", ["clusterCIDR: 10.2.0.0/40\n", "foo: 1\n", "mode: 7\n", ": [", None])
@pytest.mark.parametrize("good", ["clusterCIDR: 10.1.0.0/16\n", "clusterCIDR: 10.3.0.0/16\n"])
def test_a_rejected_file_is_known_until_a_good_one_is_read(
    running: Running, content: str | None, good: str
) -> None:
    assert running.reloader.rejected() is None
    if content is None:
        running.file.unlink()
    else:
        running.file.write_text(HEAD + content)
    running.reloader.reload("SIGHUP")
    first = running.reloader.rejected()
    assert first is not None
    assert first.file == str(running.file)
    assert first.problems
    running.reloader.reload("SIGHUP")
    assert running.reloader.rejected() == first
    running.file.write_text(HEAD + "mode: [another defect]\n")
    running.reloader.reload("SIGHUP")
    then = running.reloader.rejected()
    assert then is not None
    assert then.problems != first.problems
    running.file.write_text(HEAD + good)
    running.reloader.reload("SIGHUP")
    assert running.reloader.rejected() is None


def test_what_needs_a_restart_is_named_again_with_the_next_change(running: Running) -> None:
    running.file.write_text(HEAD + "clusterCIDR: 10.1.0.0/16\nbindAddressHardFail: true\n")
    running.reloader.reload("SIGHUP")
    assert running.applied.empty()
    running.file.write_text(HEAD + "clusterCIDR: 10.2.0.0/16\nbindAddressHardFail: true\n")
    with capture_logs() as logs:
        running.reloader.reload("SIGHUP")
    assert running.applied.get(timeout=0).bind_address_hard_fail is False
    assert [line["settings"] for line in logs if line["event"] == "restart_needed"] == [
        ["bindAddressHardFail"]
    ]


def test_a_mode_that_could_not_be_taken_is_asked_for_again_at_the_next_reload_and_not_before(
    running: Running,
) -> None:
    given = CommandLine(running.file, {})
    before = given.resolve(running.reloader.running())
    rest = "ipvs: {minSyncPeriod: 3s}\niptables: {minSyncPeriod: 2s}\n"
    running.file.write_text(
        HEAD + "clusterCIDR: 10.2.0.0/16\nmode: ipvs\n" + rest + OWN_HEAD + "iptables: {variant: nft}"
    )
    running.reloader.reload("SIGHUP")
    refused = running.applied.get(timeout=0)
    assert (refused.proxy_mode, refused.iptables_variant, refused.min_sync_period) == ("ipvs", Variant.NFT, 3)
    running.refuse(1, before)
    told = running.reloader.refused_mode()
    assert told is not None
    assert (told.mode, told.kept, told.reason) == ("ipvs/nft", "iptables", "no IPVS here")
    kept = running.applied.get(timeout=0)
    assert (kept.proxy_mode, kept.iptables_variant, kept.min_sync_period) == ("iptables", None, 2)
    assert kept.cluster_cidrs == ("10.2.0.0/16",)
    assert running.reloader.running().kube.mode == "iptables"
    with capture_logs() as logs:
        running.reloader.reload("SIGHUP")
    assert set(logs[0]["applied"]) == {"mode", "KproxyConfiguration iptables.variant"}
    assert running.applied.get(timeout=0) == refused
    assert running.reloader.refused_mode() is None


def test_a_mode_of_the_own_document_stays_where_another_is_refused(running: Running) -> None:
    given = CommandLine(running.file, {})
    running.file.write_text(HEAD + OWN_HEAD + "mode: ebpf\n")
    running.reloader.reload("SIGHUP")
    kept = running.applied.get(timeout=0)
    assert kept.proxy_mode == "ebpf"
    running.file.write_text(HEAD + "mode: ipvs\nclusterCIDR: 10.2.0.0/16\n")
    running.reloader.reload("SIGHUP")
    assert running.applied.get(timeout=0).proxy_mode == "ipvs"
    running.refuse(2, kept)
    assert running.reloader.refused_mode() is not None
    rest = running.applied.get(timeout=0)
    assert (rest.proxy_mode, rest.cluster_cidrs) == ("ebpf", ("10.2.0.0/16",))
    assert given.resolve(running.reloader.running()).proxy_mode == "ebpf"


def test_a_refused_mode_that_is_no_longer_asked_for_is_forgotten(running: Running) -> None:
    before = CommandLine(running.file, {}).resolve(running.reloader.running())
    running.file.write_text(HEAD + "mode: ipvs\n")
    running.reloader.reload("SIGHUP")
    running.refuse(1, before)
    running.file.write_text(HEAD + "mode: 7\n")
    running.reloader.reload("SIGHUP")
    assert running.reloader.refused_mode() is not None
    running.file.write_text(HEAD + "mode: iptables\n")
    running.reloader.reload("SIGHUP")
    assert running.reloader.refused_mode() is None


def test_what_was_asked_for_since_is_not_taken_back(running: Running) -> None:
    before = CommandLine(running.file, {}).resolve(running.reloader.running())
    for mode in ("ipvs", "nftables"):
        running.file.write_text(HEAD + f"mode: {mode}\n")
        running.reloader.reload("SIGHUP")
    _, wanted = running.applied.get(timeout=0), running.applied.get(timeout=0)
    running.refuse(1, before)
    assert running.applied.empty()
    assert running.reloader.refused_mode() is None
    assert running.reloader.running().kube.mode == wanted.proxy_mode == "nftables"


def test_a_refusal_is_read_by_the_thread_that_follows_and_by_a_status(running: Running) -> None:
    before = CommandLine(running.file, {}).resolve(running.reloader.running())
    stop = threading.Event()
    follower = threading.Thread(target=running.reloader.follow, args=(running.reported, stop))
    follower.start()
    running.file.write_text(HEAD + "clusterCIDR: 10.2.0.0/16\nmode: ipvs\n")
    running.reloader.reload("SIGHUP")
    assert running.applied.get(timeout=30).proxy_mode == "ipvs"
    running.reported.report(Refusal(1, before, "no IPVS here"))
    kept = running.applied.get(timeout=30)
    assert (kept.proxy_mode, kept.cluster_cidrs) == ("iptables", ("10.2.0.0/16",))
    told = running.reloader.refused_mode()
    assert told is not None
    assert told.reason == "no IPVS here"
    stop.set()
    running.reported.wake()
    follower.join(30)
    assert not follower.is_alive()


def test_without_a_file_there_is_nothing_to_reload() -> None:
    given = CommandLine(None, {})
    with capture_logs() as logs:
        reloader = Reloader(given, given.load(), lambda _: pytest.fail("nothing changed"))
        reloader.reload("SIGHUP")
        reloader.watch(threading.Event())
    assert [line["event"] for line in logs] == ["nothing_to_reload"]


def rewrite(file: Path, text: str) -> None:
    file.write_text(text)


def rename_over(file: Path, text: str) -> None:
    new = file.with_name(".new")
    new.write_text(text)
    new.rename(file)


def delete_and_write(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


@pytest.mark.parametrize("change", [rewrite, rename_over, delete_and_write])
def test_a_changed_file_is_noticed(running: Running, change: Callable[[Path, str], None]) -> None:
    with running.watching():
        for number in (2, 3):
            change(running.file, HEAD + f"clusterCIDR: 10.{number}.0.0/16\n")
            assert running.applied.get(timeout=30).cluster_cidrs == (f"10.{number}.0.0/16",)


def test_a_mounted_config_map_is_noticed(tmp_path: Path) -> None:
    """As kubelet does it: the file is a link through ..data, which is replaced by another link."""

    def publish(number: int) -> None:
        versioned = tmp_path / f"..version_{number}"
        versioned.mkdir()
        (versioned / "config.conf").write_text(HEAD + f"clusterCIDR: 10.{number}.0.0/16\n")
        (tmp_path / "..data_tmp").symlink_to(versioned.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish(1)
    (tmp_path / "config.conf").symlink_to("..data/config.conf")
    running = Running(tmp_path / "config.conf")
    with running.watching():
        for number in (2, 3):
            publish(number)
            assert running.applied.get(timeout=30).cluster_cidrs == (f"10.{number}.0.0/16",)


def test_a_change_before_the_watch_begins_is_not_missed(running: Running) -> None:
    running.file.write_text(HEAD + "clusterCIDR: 10.9.0.0/16\n")
    with running.watching():
        assert running.applied.get(timeout=30).cluster_cidrs == ("10.9.0.0/16",)


def test_what_a_signal_applied_is_taken_back_with_the_old_file(running: Running) -> None:
    """The watch may sleep through a file that comes and goes; what counts is what was applied last."""
    with running.watching():
        rename_over(running.file, HEAD + "clusterCIDR: 10.2.0.0/16\n")
        assert running.applied.get(timeout=30).cluster_cidrs == ("10.2.0.0/16",)
        rename_over(running.file, HEAD + "clusterCIDR: 10.3.0.0/16\n")
        running.reloader.reload("SIGHUP")
        assert running.applied.get(timeout=0).cluster_cidrs == ("10.3.0.0/16",)
        rename_over(running.file, HEAD + "clusterCIDR: 10.2.0.0/16\n")
        assert running.applied.get(timeout=30).cluster_cidrs == ("10.2.0.0/16",)


def test_a_relative_path_is_watched_too(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Running(Path(os.path.relpath(running.file)))
    with relative.watching():
        rename_over(running.file, HEAD + "clusterCIDR: 10.4.0.0/16\n")
        assert relative.applied.get(timeout=30).cluster_cidrs == ("10.4.0.0/16",)


def test_a_setting_that_this_node_cannot_obey_is_named_and_the_rest_is_applied(running: Running) -> None:
    refusing = [True]
    apply = running.reloader._apply

    def take(config: ProxyConfig) -> int:
        if config.network_policy and refusing[0]:
            raise SettingRefused("networkPolicy.enabled", kept=False, reason="no nf_tables here")
        return apply(config)

    running.reloader._apply = take
    enabled = OWN_HEAD + "networkPolicy: {enabled: true}\n"
    running.file.write_text(HEAD + "clusterCIDR: 10.2.0.0/16\n" + enabled)
    with capture_logs() as logs:
        running.reloader.reload("SIGHUP")
    config = running.applied.get(timeout=0)
    assert (config.cluster_cidrs, config.network_policy) == (("10.2.0.0/16",), False)
    told = running.reloader.refused_setting()
    assert told is not None
    setting = "KproxyConfiguration networkPolicy.enabled"
    assert (told.setting, told.reason) == (setting, "no nf_tables here")
    assert [each["setting"] for each in logs if each["event"] == "setting_refused"] == [setting]
    assert not running.reloader.running().own.network_policy.enabled
    refusing[0] = False
    running.reloader.reload("SIGHUP")
    assert running.applied.get(timeout=0).network_policy
    assert running.reloader.refused_setting() is None
