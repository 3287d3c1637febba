"""The steps of the pipeline as Kubeflow components: one folder for each of ``ALL_STEP_NAMES``.

A component is a signature, a docstring and an argv; the step itself is in :mod:`quantlib.steps`.
``python -m components`` writes each component's README from its docstring and metadata.
"""
