"""Packet conformance: the real program on a lab's node, an embedded API server, and real requests."""
