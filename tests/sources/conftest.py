"""Sources against the embedded API server, with waits short enough for tests."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kproxy.sources.kubernetes import ClusterAccess, KubernetesSource, KubernetesSourceConfig
from kproxy.state.kinds import KINDS, Kind
from kproxy_lab.apiserver import ApiServer

FAST = KubernetesSourceConfig(
    backoff_seconds=0.01,
    backoff_max_seconds=0.05,
    unreachable_max_seconds=0.05,
    steady_seconds=0.2,
    stop_seconds=1000,
)
"""No long waits after failures; `stop_seconds` is such that only an interrupted thread lets a test end."""

MakeSource = Callable[..., KubernetesSource]


@pytest.fixture
def make_source(tmp_path: Path) -> MakeSource:
    """Build a source for an embedded server: `make_source(api, node=..., page_size=...)`."""

    def make(
        api: ApiServer, *, node: str | None = "n1", kinds: Iterable[Kind] = KINDS, **config: Any
    ) -> KubernetesSource:
        access = ClusterAccess(kubeconfig=api.kubeconfig(tmp_path / "kubeconfig"))
        return KubernetesSource(access, node, replace(FAST, **config), kinds=kinds)

    return make
