"""Loading models in plugins."""

from mixpeek_ray.loading import load_namespace_model

__all__ = ["load_namespace_model"]
