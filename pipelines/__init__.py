"""The pipeline, and the interpreter that runs its compiled form on one machine.

``python -m pipelines compile`` writes what Kubeflow Pipelines takes; ``python -m pipelines run``
executes the same file here, each step as a process or a container of its own.
"""
