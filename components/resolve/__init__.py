"""The resolve step as a component."""
