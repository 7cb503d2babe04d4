"""Errors, settings, records and limits: what every layer shares and nothing else."""
