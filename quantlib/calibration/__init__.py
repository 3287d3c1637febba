"""What quantizers learn of the inputs of linears, and what came to each expert."""
