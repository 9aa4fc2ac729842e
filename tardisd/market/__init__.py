"""Values of the market: series, spans, times, columns; no trio and no I/O in here."""
