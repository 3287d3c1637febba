"""One block at a time: what its linears read, their quantization, and what it hands on."""
