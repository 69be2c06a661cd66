"""A node on which something is wrong: programs and sockets that fail, a full disk, another clock.

    tools = BrokenTools(directory)
    argv = [*Room(tools=tools.directory).command(), "kproxy", "run", ...]
    tools.order(Deed.HALF, chance=0.5)
    ...
    tools.behave()

Everything is confined to the program that is started in such a room; the machine is left as it is.
"""

from tests.support.faultinjection.clocks import BrokenClock
from tests.support.faultinjection.deaf import Loss
from tests.support.faultinjection.room import Room
from tests.support.faultinjection.sockets import BrokenSockets
from tests.support.faultinjection.stand_in import Deed
from tests.support.faultinjection.tools import NAMES, BrokenTools

__all__ = ["NAMES", "BrokenClock", "BrokenSockets", "BrokenTools", "Deed", "Loss", "Room"]
