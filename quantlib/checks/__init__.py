"""What is refused before any work: a recipe alone, on a model, with its texts, on this machine."""
