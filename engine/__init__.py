"""The import path that plugins use; everything here is re-exported from ``mixpeek_ray``."""
