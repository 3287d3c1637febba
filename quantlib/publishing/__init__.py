"""Signs published checkpoints, and verifies them before anybody serves them."""
