"""The plan step as a component."""
