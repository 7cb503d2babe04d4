"""Deployed custom models at their endpoints: `python -m benchmarks.pool`."""
