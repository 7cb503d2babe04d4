"""Archives and weight formats: bytes, files and tensors, never Ray."""
