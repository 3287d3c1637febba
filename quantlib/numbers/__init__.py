"""How numbers are stored: what codes, scales and zero points stand for."""
