"""The IPVS mode: virtual servers for the frontends of services, with ipsets and a fixed number of rules."""
