"""BPF: programs at the sockets of a cgroup, and their maps, by bpf(2)."""
