"""What a node lacks for kproxy: thin probes that try and look, and pure judgement of what they found."""
