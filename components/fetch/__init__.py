"""The fetch step as a component."""
