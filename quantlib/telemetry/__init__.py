"""What others are told of steps and runs: figures for Prometheus, and notices of how runs end."""
