"""Published checkpoints as OCI images: the registry's protocol, and an image's layers."""
