"""The API server as this node sees it: is it there, and may kproxy read what it needs."""

from collections.abc import Iterator, Mapping

import msgspec

from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.findings import Finding, failed, ok, warning
from kproxy.node.facts import wants_service_cidrs
from kproxy.sources.access import Inquirer, Question
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
from kproxy.sources.errors import ApiError

_ROLE = "bind its user or service account to the ClusterRole system:node-proxier"

_CIDRS_GROUP, _CIDRS = "networking.k8s.io", "servicecidrs"
_CIDRS_REMEDY = f"{_ROLE} of Kubernetes 1.33 or later, or name the ranges with --service-cidr"


def questions(config: ProxyConfig) -> tuple[Question, ...]:
    """What kproxy needs to be allowed: all of it but events and servicecidrs is essential."""
    wanted = [
        Question(verb, group, resource, name)
        for group, resource, name in (
            ("", "services", ""),
            ("discovery.k8s.io", "endpointslices", ""),
            ("", "nodes", config.node_name),
            *([(_CIDRS_GROUP, _CIDRS, "")] if wants_service_cidrs(config) else ()),
        )
        for verb in ("list", "watch")
    ]
    return (*wanted, *(Question(verb, "events.k8s.io", "events") for verb in ("create", "patch")))


def check_cluster(config: ProxyConfig) -> Iterator[Finding]:
    """Ask the API server."""
    try:
        inquirer = Inquirer(ClusterAccess(config.kubeconfig, master=config.master or None))
    except ClusterAccessError as error:
        yield failed("API server", str(error), "give a working --kubeconfig, or run in a pod of the cluster")
        return
    try:
        version = inquirer.version()
    except (ApiError, ClusterAccessError, msgspec.MsgspecError) as error:
        remedy = "see that this address is reachable from the node itself, not through a service address"
        yield failed("API server", str(error), remedy)
        return
    yield ok("API server", f"{inquirer.server} answers, version {version}")
    answers: dict[Question, bool] = {}
    try:
        for question in questions(config):
            answers[question] = inquirer.may(question)
    except (ApiError, ClusterAccessError, msgspec.MsgspecError) as error:
        yield warning("permissions in the cluster", f"cannot be asked for: {error}", _ROLE)
        return
    yield from judge_access(answers)
    if all(allowed for question, allowed in answers.items() if question.resource == "nodes"):
        yield from _check_name(inquirer, config.node_name)


def _check_name(inquirer: Inquirer, node: str) -> Iterator[Finding]:
    """A name that no Node has is no obstacle, for the kubelet may be about to register it."""
    try:
        if inquirer.has_node(node):
            yield ok("node", f"the API server knows {node}")
            return
    except (ApiError, ClusterAccessError, msgspec.MsgspecError) as error:
        yield warning("node", str(error), _ROLE)
        return
    told = f"the API server knows no Node {node}: no endpoint will be local, and /healthz will answer 503"
    yield warning("node", told, "give the Node's name with --hostname-override")


def judge_access(answers: Mapping[Question, bool]) -> Iterator[Finding]:
    """What is allowed and what is not."""
    denied = [question for question, allowed in answers.items() if not allowed]
    for question in denied:
        subject = "permissions in the cluster"
        if question.resource == "events":
            yield warning(subject, f"may not {question}: problems are told in the log only", _ROLE)
        elif question.resource == _CIDRS:
            told = f"may not {question}: cluster IPs that no service has are routed on"
            yield warning(subject, told, _CIDRS_REMEDY)
        else:
            yield failed(subject, f"may not {question}", _ROLE)
    if not denied:
        yield ok("permissions in the cluster", "all that are needed are given")
