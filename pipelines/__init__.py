"""The workflows: one table of steps, and what runs it on Kubeflow, on Argo and on this machine."""
