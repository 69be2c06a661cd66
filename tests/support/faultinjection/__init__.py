"""Faults for one program under test: failing tools and netlink sockets, a full disk, another clock.

    tools = BrokenTools(directory)
    argv = [*Sandbox(tools=tools.directory).command(), "kproxy", "run", ...]
    tools.enable(ToolFault.KILL_HALFWAY, chance=0.5)
    ...
    tools.disable()

Faults affect only the program that runs in the sandbox; the machine stays as it is.
"""

from tests.support.faultinjection.clocks import BrokenClock
from tests.support.faultinjection.netlink_faults import NetlinkFault
from tests.support.faultinjection.sandbox import Sandbox
from tests.support.faultinjection.sockets import BrokenSockets
from tests.support.faultinjection.tool_wrapper import ToolFault
from tests.support.faultinjection.tools import NAMES, BrokenTools

__all__ = ["NAMES", "BrokenClock", "BrokenSockets", "BrokenTools", "NetlinkFault", "Sandbox", "ToolFault"]
