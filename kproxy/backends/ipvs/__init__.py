"""The IPVS mode: virtual servers for the addresses of services, sets and a few rules around them."""
