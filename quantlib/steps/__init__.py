"""The steps of the pipeline: one module each, run by ``python -m quantlib.steps <step>``.

Every module holds the step as a plain function over a store, which the manager calls in-process,
and ``main``, which maps a Kubeflow executor input to it.
"""

STEP_NAMES = (
    "fetch",
    "plan",
    "calibrate",
    "smooth",
    "quantize",
    "merge",
    "validate",
    "gate",
    "publish",
)
"""In the order of the quantization pipeline."""

ALL_STEP_NAMES = ("resolve", *STEP_NAMES)
"""In the order of the watch pipeline, which holds the other one."""
