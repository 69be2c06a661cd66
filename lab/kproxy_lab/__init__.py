"""Equipment shared by tests, the demo and benchmarks: an API server, a network lab, a user-mode kernel."""
