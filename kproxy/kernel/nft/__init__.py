"""nftables over netlink: transactions, and readings of a table."""
