"""Calibrated, streamed and sharded quantization of large language models for vLLM."""

__version__ = "0.2.0"
