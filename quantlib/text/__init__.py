"""From texts to token windows: files, rows, conversations, tokens. Imports no torch."""
