"""A model platform on Ray: upload weights once, view them from every worker without a copy."""

__version__ = "0.1.0"
