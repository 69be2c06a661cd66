"""Check that this node reaches the API server and that kproxy may read the objects it needs."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from kproxy.config.model import ProxyConfig
from kproxy.modes.findings import Finding, failed, ok, warning
from kproxy.modes.kinds import needed_kinds
from kproxy.sources.access import AccessReview, ApiProbe
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
from kproxy.sources.errors import ApiError
from kproxy.state.kinds import KINDS, Kind, Loss

_ROLE = "bind its user or service account to the ClusterRole system:node-proxier"


def access_reviews(config: ProxyConfig, kinds: Iterable[Kind] | None = None) -> tuple[AccessReview, ...]:
    """The permissions that kproxy needs; `kinds` are by default those that `config` needs."""
    wanted = [
        AccessReview(verb, kind.group, kind.plural, config.node_name if kind.own_node else "")
        for kind in (needed_kinds(config) if kinds is None else kinds)
        for verb in ("list", "watch")
    ]
    return (*wanted, *(AccessReview(verb, "events.k8s.io", "events") for verb in ("create", "patch")))


def check_cluster(config: ProxyConfig) -> Iterator[Finding]:
    """Query the API server and evaluate its answers."""
    try:
        api = ApiProbe(ClusterAccess(config.kubeconfig, master=config.master or None))
    except ClusterAccessError as error:
        yield failed("API server", str(error), "give a working --kubeconfig, or run in a pod of the cluster")
        return
    try:
        version = api.version()
    except (ApiError, ClusterAccessError, msgspec.MsgspecError) as error:
        remedy = "see that this address is reachable from the node itself, not through a service address"
        yield failed("API server", str(error), remedy)
        return
    yield ok("API server", f"{api.server} answers, version {version}")
    answers: dict[AccessReview, bool] = {}
    try:
        for review in access_reviews(config):
            answers[review] = api.can_i(review)
    except (ApiError, ClusterAccessError, msgspec.MsgspecError) as error:
        yield warning("permissions in the cluster", f"cannot be asked for: {error}", _ROLE)
        return
    yield from access_findings(answers)
    if all(allowed for review, allowed in answers.items() if review.resource == "nodes"):
        yield from _check_name(api, config.node_name)


def _check_name(api: ApiProbe, node: str) -> Iterator[Finding]:
    """Warn if no Node has that name; it is no failure, because kubelet may still register it."""
    try:
        if api.has_node(node):
            yield ok("node", f"the API server knows {node}")
            return
    except (ApiError, ClusterAccessError, msgspec.MsgspecError) as error:
        yield warning("node", str(error), _ROLE)
        return
    found = f"the API server knows no Node {node}: no endpoint will be local, and /healthz will answer 503"
    yield warning("node", found, "give the Node's name with --hostname-override")


def access_findings(answers: Mapping[AccessReview, bool], kinds: Iterable[Kind] = KINDS) -> Iterator[Finding]:
    """Findings about permissions.

    Without that for an optional kind, a warning with the effect. NetworkPolicies are wanted only where a
    setting asks for them, and without them pods are open, so what they need is a failure.
    """
    optional = {(kind.group, kind.plural): kind for kind in kinds if kind.loss is not None}
    denied = [review for review, allowed in answers.items() if not allowed]
    for review in denied:
        subject = "permissions in the cluster"
        if review.resource == "events":
            yield warning(subject, f"may not {review}: problems are reported in the log only", _ROLE)
        elif (kind := optional.get((review.group, review.resource))) is not None and kind.loss is not None:
            level = failed if kind.for_policies else warning
            yield level(subject, f"may not {review}: {kind.loss.effect}", _remedy(kind.loss))
        else:
            yield failed(subject, f"may not {review}", _ROLE)
    if not denied:
        yield ok("permissions in the cluster", "all that are needed are given")


def _remedy(loss: Loss) -> str:
    role = f"{_ROLE} of Kubernetes {loss.since} or later" if loss.since else ""
    return ", or ".join(filter(None, (role, loss.instead))) or _ROLE
