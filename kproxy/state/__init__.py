"""The state of the cluster: decoded objects, and the services changed since the last successful apply."""
