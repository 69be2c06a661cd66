"""A family's whole table as one nft script, an object a line, for `kproxy render`."""

from kproxy.backends.policy.change import whole_script
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.desired import DesiredTable
from kproxy.plan.policy.model import PolicyTable, Touched


def render(table: PolicyTable, config: PolicyConfig) -> str:
    """Return the input for `nft -f`, which makes a table that does not exist."""
    desired = DesiredTable(config)
    desired.update(table, everything(table))
    return str(whole_script(desired, config.family))


def everything(table: PolicyTable) -> Touched:
    """All that a table has, as touched: for a backend that knows nothing of it yet."""
    addresses = set(table.local)
    for led in table.isolated.values():
        addresses.update(led)
    return Touched(
        groups=frozenset(table.groups),
        members=frozenset({*table.peers, *table.named}),
        ranges=frozenset(table.ranges),
        addresses=frozenset(addresses),
    )
