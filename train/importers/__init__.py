"""Weights that others published, made into bundles: readers of their files, and which layer is which."""
