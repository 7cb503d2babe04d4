"""The command line: run the platform, manage keys."""
