"""The HTTP servers of one process: one for health checks, one for metrics, status and questions."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus

from kproxy.config.model import ProxyConfig
from kproxy.node.descriptors import DescriptorShares
from kproxy.telemetry.http.health import HEALTHZ, HealthServer, HealthState
from kproxy.telemetry.http.server import HttpServer, Queries, Routes
from kproxy.telemetry.metrics import Metrics, observe_check
from kproxy.telemetry.series import HEALTHZ as HEALTHZ_ANSWERS
from kproxy.telemetry.series import LIVEZ as LIVEZ_ANSWERS


def make_servers(
    config: ProxyConfig,
    health: HealthState,
    metrics: Metrics,
    routes: Routes,
    queries: Queries,
    shares: DescriptorShares,
) -> list[HttpServer]:
    """The servers that the settings name, not started; none with `once`."""

    def answered(path: str, status: int) -> None:
        metrics.add(HEALTHZ_ANSWERS if path == HEALTHZ else LIVEZ_ANSWERS, str(status))
        observe_check(metrics, "sync", path.removeprefix("/"), passed=status == HTTPStatus.OK)

    servers: list[HttpServer] = []
    if config.healthz_bind_address and not config.once:
        servers.append(HealthServer(config.healthz_bind_address, health, answered, limit=shares.healthz))
    if config.metrics_bind_address and not config.once:
        address = config.metrics_bind_address
        servers.append(HttpServer("metrics", address, routes, limit=shares.metrics, queries=queries))
    return servers


@contextmanager
def serving(servers: Iterable[HttpServer], *, hard_fail: bool) -> Iterator[None]:
    """Serve during the block. Raises OSError for an address that cannot be bound, with `hard_fail`."""
    with ExitStack() as started:
        for server in servers:
            server.start(hard_fail=hard_fail)
            started.callback(server.stop)
        yield
