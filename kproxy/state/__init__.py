"""What the cluster says: decoded objects, and which services changed since the last successful apply."""
