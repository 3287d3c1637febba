"""The workflows on this machine: every step is a process, or a container of its image."""
