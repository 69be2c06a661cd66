"""The demo behind `kproxy demo`: a small cluster, the real program, real packets and their outcomes.

`story.run()` runs all of it. The expected outcomes come from `expect` alone, which reads the manifests and
does not use kproxy's planner, so that the check marks are an independent result.
"""
