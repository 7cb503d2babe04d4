"""Embeddings over HTTP beside the servers that people use: `python -m benchmarks.serving`."""
