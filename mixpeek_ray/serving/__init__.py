"""What the Serve deployments share: how the HTTP application meets Ray Serve."""
