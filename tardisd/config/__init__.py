"""Configuration: find, read, check and show it; starts nothing and touches no network."""
