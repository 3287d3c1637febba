"""The workflows on Kubeflow Pipelines."""
