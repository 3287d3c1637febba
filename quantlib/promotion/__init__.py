"""Promotion of a published checkpoint to a service: by a change in git, or directly.

Imports neither torch nor vLLM; the ``kubernetes`` package is imported for direct promotion only.
"""
