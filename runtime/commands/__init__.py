"""One file a command of the runtime."""
