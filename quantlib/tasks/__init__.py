"""Tasks that a model is given through the server that will serve it, and what comes of it."""
