"""Separation for many at once: one network, and whoever has chunks for it."""
