"""The IPVS mode: what it is made of here, what it leaves, what a start would change."""
