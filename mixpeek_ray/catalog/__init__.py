"""What the built-in models are: one YAML file, parsed into frozen model cards."""
