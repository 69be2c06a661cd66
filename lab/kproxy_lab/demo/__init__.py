"""The demo behind `kproxy demo`: a small cluster, the real program, real packets, and what became of them.

`story.tell()` is the whole of it. What Kubernetes says should happen comes from `expect` alone, which reads
the manifests and knows nothing of kproxy's planning, so that the check marks mean something.
"""
