"""The ModelRegistry actor: the catalog, the only writer of manifests, the owner of the weights."""
