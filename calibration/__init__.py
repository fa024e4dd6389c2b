"""Calibration: INT8 ranges from real audio, and precision chosen by decibels."""
