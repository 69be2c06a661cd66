"""The part of the running process that enforces NetworkPolicies."""
