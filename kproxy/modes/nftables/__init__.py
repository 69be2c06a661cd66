"""The nftables mode: the running mode, its leftovers, its preview and checks."""
