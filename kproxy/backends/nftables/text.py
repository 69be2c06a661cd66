"""A family's whole table as one nft script, an object a line, for `kproxy render` and for new namespaces.

A running kproxy writes differences, which are built from the same parts.
"""

from collections.abc import Iterable

from kproxy.backends.nftables.chains import Chain
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.element_owners import ElementOwners
from kproxy.backends.nftables.render import render_service
from kproxy.backends.nftables.script import Script
from kproxy.plan.model import ServicePlan


def render_text(plans: Iterable[ServicePlan], config: NftablesConfig) -> str:
    """Return the input for `nft -f`, from settled plans of the configuration's family, in any order."""
    return str(whole_table(plans, config))


def whole_table(plans: Iterable[ServicePlan], config: NftablesConfig) -> Script:
    """Return the script that makes the table.

    Maps and sets, base chains, the chains that services need by name, elements by map and key.
    """
    owners = ElementOwners()
    chains: dict[str, Chain] = {}
    for plan in plans:
        objects = render_service(plan, config)
        owners.replace(plan.key, (), objects.entries)
        chains |= objects.chains
    script = Script(config)
    script.declare(config)
    script.base(config)
    script.chains(dict(sorted(chains.items())))
    for container, elements in sorted(owners.wanted.items()):
        for key in sorted(elements):
            script.add_elements(container, {key: elements[key]})
    return script
