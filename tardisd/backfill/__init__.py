"""Backfill: from the gaps of a series to pages that fill them."""
