"""Parity: how much an artifact lost against the eager network, in dB, on which stem."""
