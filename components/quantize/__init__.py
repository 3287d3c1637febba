"""The quantize step as a component."""
