"""NetworkPolicy: what each policy means for this node (pure)."""
