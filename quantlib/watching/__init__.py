"""Models that are watched: which release an address means now, and a run for each that is new."""
