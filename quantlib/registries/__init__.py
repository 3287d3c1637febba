"""Tells registries of models what was published: Kubeflow's, and MLflow."""
