"""Ray Serve applications, one module each."""
