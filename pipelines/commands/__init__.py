"""The commands of ``quantlib`` about the workflows, one module each."""
