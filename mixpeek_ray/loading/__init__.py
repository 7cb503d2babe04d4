"""Loading weights in any worker as private views of one shared copy."""
