"""Loading weights in any worker as private views of one shared copy."""

from mixpeek_ray.loading.loader import load_namespace_model

__all__ = ["load_namespace_model"]
