"""What operators write: files, flags, variables, and changes of them."""
