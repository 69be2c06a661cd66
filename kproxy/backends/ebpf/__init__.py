"""The eBPF mode's table at the sockets: rendering, comparison, writing."""
