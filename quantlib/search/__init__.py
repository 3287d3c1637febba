"""Which scheme each linear gets, for a budget of bits: measured, and solved exactly."""
