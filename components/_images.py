"""The container images of the steps: the only place with an image name.

The tag is the version of quantlib, so a compiled pipeline always runs the code that it was compiled
from. Set ``QUANTLIB_IMAGE`` and ``QUANTLIB_VALIDATE_IMAGE`` when compiling to take the images from
a registry of your own, best by digest.
"""

import os

from quantlib import __version__

QUANTLIB_IMAGE = os.environ.get("QUANTLIB_IMAGE", f"quantlib:{__version__}")
"""Every step but validate."""

VALIDATE_IMAGE = os.environ.get("QUANTLIB_VALIDATE_IMAGE", f"quantlib-validate:{__version__}")
"""Adds vLLM, which only validate needs."""
