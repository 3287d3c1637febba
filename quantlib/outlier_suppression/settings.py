"""What those who plan need to know of the suppressors, without importing torch."""

SAMPLE_TOKENS = 512
"""Tokens that strengths of smoothing are tried on: at most, and at most a quarter of all."""
