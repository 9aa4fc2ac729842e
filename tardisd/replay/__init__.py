"""The replay engine: clock, ordered merge, sessions and their followers."""
