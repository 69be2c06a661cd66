"""The nftables mode: one table per family in which services are nothing but elements of shared maps."""
