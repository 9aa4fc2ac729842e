"""Contracts between the core and its plugins, and how plugins are found; no concrete plugin."""
