"""Songs whose stems are known: found on disk, loaded, or generated."""
