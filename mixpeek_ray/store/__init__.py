"""The durable store: blobs over fsspec, and the records kept in them."""
