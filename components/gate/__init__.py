"""The gate step as a component."""
