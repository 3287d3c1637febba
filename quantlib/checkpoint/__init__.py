"""Safetensors checkpoints by header and byte range: no file is ever read whole."""
