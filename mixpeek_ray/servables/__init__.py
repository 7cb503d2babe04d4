"""Deployed models as functions of named tensors: what an archive alone is enough to answer requests with."""
