"""Contracts between the core and its plugins, and how plugins are found; no concrete plugin."""

# The version of the contracts, MAJOR.MINOR: every class and hook that a plugin may build upon. What
# is added raises the second number, what is changed or removed the first.
CONTRACT_VERSION = "1.0"
