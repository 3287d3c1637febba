"""The validate step as a component."""
