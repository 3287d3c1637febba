"""The calibrate step as a component."""

from components.calibrate.component import calibrate

__all__ = ["calibrate"]
