"""The workflows on Argo Workflows, without Kubeflow."""
