"""Ticks to bytes; no sockets in here."""
