"""The settings of a family's table of policies, from the configuration and the Node."""

from collections.abc import Iterable

import msgspec
import structlog

from kproxy.addresses import Family, collapse, parse_cidr
from kproxy.backends.policy.config import PolicyConfig, Unknown
from kproxy.backends.policy.probe import holding
from kproxy.config.model import ProxyConfig
from kproxy.kernel.nft.types import Nft, NftError
from kproxy.node.facts import pod_cidrs
from kproxy.state.wire import Node

log = structlog.stdlib.get_logger(__name__)


def policy_config(
    config: ProxyConfig, family: Family, node: Node | None, ranges: Iterable[str] = ()
) -> PolicyConfig:
    """The settings of one family on this node; invalid pod ranges of the Node are left out.

    `ranges`: further ranges of this node's pods, of any family.
    """
    return PolicyConfig(
        family=family,
        reject=config.network_policy_reject,
        unknown=Unknown(config.network_policy_unknown_pods),
        pod_cidrs=_ranges(family, (*pod_cidrs(node), *ranges)),
    )


def able(nft: Nft, config: PolicyConfig) -> PolicyConfig:
    """The settings as far as this kernel can obey them; what it cannot is logged.

    It chooses how packets of unknown pods are held. Where the kernel cannot hold any, they are dropped.
    """
    if config.unknown is not Unknown.HOLD:
        return config
    try:
        found = holding(nft, config)
    except NftError as error:
        log.warning("policy_hold_unknown", family=config.family.value, reason=error.message)
        return config
    if found is not None:
        return found
    effect = "packets of pods that are not known yet are dropped"
    log.warning("policy_cannot_hold", family=config.family.value, effect=effect)
    return msgspec.structs.replace(config, unknown=Unknown.DROP)


def _ranges(family: Family, texts: Iterable[str]) -> tuple[str, ...]:
    found = []
    for text in texts:
        try:
            of, cidr = parse_cidr(text)
        except ValueError:
            continue
        if of is family:
            found.append(cidr)
    return collapse(found)
