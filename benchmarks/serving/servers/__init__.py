"""One module a peer's server: each runs in that peer's own environment, with this repository on its path."""
