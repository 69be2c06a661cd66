"""What an operator wrote, in kube-proxy's forms: the configuration file, flags and the environment."""
