"""Pure ASGI middleware: all that must happen before the first byte of a body is read."""
