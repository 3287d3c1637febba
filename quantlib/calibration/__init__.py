"""Calibration: text to token windows, hidden states at range boundaries, channel statistics."""
