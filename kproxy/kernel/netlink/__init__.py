"""Netlink sockets that send requests in batches and match every acknowledgement to its request."""
