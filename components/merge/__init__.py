"""The merge step as a component."""
