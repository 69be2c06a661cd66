"""Netlink sockets that send many requests at once and match every acknowledgement to its request."""
