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
    "tasks",
    "gate",
    "publish",
)
"""In the order of the quantization pipeline."""

SEARCH_STEP_NAMES = ("measure", "choose")
"""Behind calibrate, where a recipe has a budget."""

ALL_STEP_NAMES = ("resolve", *STEP_NAMES[:3], *SEARCH_STEP_NAMES, *STEP_NAMES[3:])
"""In the order of the pipelines, the longest of which has them all."""
