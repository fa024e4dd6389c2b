"""Data for training: song folders, decoded once, and what is done to them."""
