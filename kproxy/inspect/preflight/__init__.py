"""Check whether this node meets kproxy's needs, by probes."""
