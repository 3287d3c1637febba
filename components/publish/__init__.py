"""The publish step as a component."""
