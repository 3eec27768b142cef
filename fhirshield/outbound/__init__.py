"""The way out: the only rooms that open connections. ``http`` alone imports an HTTP client."""
