"""A node on which something is wrong: programs and sockets that fail, a full disk, another clock.

    tools = BrokenTools(directory)
    argv = [*Room(tools=tools.directory).command(), "kproxy", "run", ...]
    tools.order(Deed.HALF, chance=0.5)
    ...
    tools.behave()

Everything is confined to the program that is started in such a room; the machine is left as it is.
"""

from kproxy.testing.sabotage.clocks import BrokenClock
from kproxy.testing.sabotage.deaf import Loss
from kproxy.testing.sabotage.room import Room
from kproxy.testing.sabotage.sockets import BrokenSockets
from kproxy.testing.sabotage.stand_in import Deed
from kproxy.testing.sabotage.tools import NAMES, BrokenTools

__all__ = ["NAMES", "BrokenClock", "BrokenSockets", "BrokenTools", "Deed", "Loss", "Room"]
