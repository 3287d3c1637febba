"""The smooth step as a component."""
