"""One world with a running kproxy per mode and source of objects, shared by the tests of a file."""

import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from kproxy_lab.apiserver import ApiServer
from kproxy_lab.lab import Lab
from tests.packets.modes import MODES, Mode
from tests.packets.program import Kproxy
from tests.policy import objects
from tests.policy.world import CLUSTER_CIDRS, World
from tests.policy.writers import ApiWriter, ManifestWriter


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for value in getattr(item, "funcargs", {}).values() if report.failed else ():
        if isinstance(value, World) and value.program is not None:
            report.sections.append(("kproxy log, last lines", "\n".join(value.program.log[-40:])))
    return report


def missing() -> list[str]:
    """Why policies cannot be tried here; the user-mode kernel has no nf_tables for IP."""
    if reasons := Lab.missing():
        return reasons
    rules = "add table ip x; add chain ip x c { type filter hook forward priority 0; }"
    done = subprocess.run(
        ["unshare", "--net", "nft", "-f", "-"], input=rules, text=True, capture_output=True, check=False
    )
    return (
        [] if done.returncode == 0 else [f"this kernel's nf_tables cannot filter IP: {done.stderr.strip()}"]
    )


@pytest.fixture(scope="module", params=MODES, ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    if reasons := missing():
        pytest.skip("; ".join(reasons))
    chosen: Mode = request.param
    return chosen


NFTABLES: Mode = next(each for each in MODES if isinstance(each, Mode) and each.name == "nftables")
"""What does not depend on the mode is tried in this one."""


@contextmanager
def api_world(directory: Path, mode: Mode = NFTABLES) -> Iterator[World]:
    """A world for a mode; its objects are in an API server that listens in the node's namespace."""
    spec = mode.spec(objects.SPEC)
    with Lab(spec) as lab, ApiServer(host="0.0.0.0", port=6443, sockets=lab.node.listen) as api:
        world = World(lab, ApiWriter(api, directory / "kubeconfig"))
        try:
            yield world
        finally:
            world.close()


@contextmanager
def manifest_world(directory: Path, mode: Mode) -> Iterator[World]:
    """A world for a mode; its objects are in files."""
    with Lab(mode.spec(objects.SPEC)) as lab:
        world = World(lab, ManifestWriter(directory / "manifests"))
        try:
            yield world
        finally:
            world.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world in nftables mode whose kproxy runs from the first test on; each test shows its own objects."""
    if reasons := missing():
        pytest.skip("; ".join(reasons))
    with api_world(tmp_path_factory.mktemp("policy")) as made:
        made.start(NFTABLES)
        yield made


class ConfiguredWorld:
    """A world whose kproxy runs with a configuration file, which `write` replaces."""

    def __init__(self, world: World, path: Path) -> None:
        self.world = world
        self.path = path
        self._mode, self._enabled = "nftables", True
        self.write()

    def write(self, *, mode: str = "", enabled: bool | None = None) -> None:
        """Change the mode, or whether NetworkPolicies are enforced."""
        self._mode = mode or self._mode
        self._enabled = self._enabled if enabled is None else enabled
        documents = [
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": self._mode,
                "clusterCIDR": CLUSTER_CIDRS,
                "clientConnection": {"kubeconfig": self.world.writer.flags()[1]},
            },
            {
                "apiVersion": "kproxy.io/v1alpha1",
                "kind": "KproxyConfiguration",
                "networkPolicy": {"enabled": self._enabled},
            },
        ]
        new = self.path.with_name(".new")
        new.write_text(yaml.safe_dump_all(documents))
        new.rename(self.path)


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[ConfiguredWorld]:
    """A world of its own with a configuration file."""
    if reasons := missing():
        pytest.skip("; ".join(reasons))
    with api_world(tmp_path) as world:
        made = ConfiguredWorld(world, tmp_path / "config.yaml")
        node = world.lab.spec.node_name
        world.program = Kproxy(
            world.lab.node, ["run", "--config", str(made.path), "--hostname-override", node, "-v", "2"]
        )
        world.settle()
        yield made
