"""The answers of connections that were ended, which the table refuses.

When an entry of connection tracking is deleted, the connection's next packet is the first of a new one. The
client's is judged as before. The server's looks like a connection that the server opens: it would pass if the
server's pod may send, and everything of the connection after it. So the answers of ended connections are
elements of a set, and rules refuse them before they judge.
"""

from collections.abc import Sequence

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.kernel.conntrack.connections import Connection
from kproxy.kernel.nft.commands import AddElements, Transaction
from kproxy.plan.model import Protocol


def refuse_answers(family: Family, connections: Sequence[Connection]) -> Transaction:
    """The transaction after which the table refuses what the servers of these connections send."""
    elements: dict[str, dict[str, str]] = {}
    for each in connections:
        is_udp = each.protocol == names.PROTOCOL_NUMBERS[Protocol.UDP]
        answer = (each.server, each.server_port, each.client, each.client_port, each.protocol)
        container = names.ENDED_DATAGRAMS if is_udp else names.ENDED
        elements.setdefault(container, {})[" . ".join(map(str, answer))] = ""
    commands = (
        AddElements(name, names.declaration_of(family, name) or "", some) for name, some in elements.items()
    )
    return Transaction(family, names.TABLE, tuple(commands))
