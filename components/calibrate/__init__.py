"""The calibrate step as a component."""
