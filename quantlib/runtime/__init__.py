"""This process and the machine it runs on: devices, CPUs, child processes, which code this is."""
