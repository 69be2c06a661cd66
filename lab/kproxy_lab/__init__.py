"""What tests, the demo and benchmarks share: stand-ins for the kernel, the API server and the network."""
