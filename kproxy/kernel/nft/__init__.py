"""nftables, through the program `nft`."""
