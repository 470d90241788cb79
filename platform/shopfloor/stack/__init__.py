"""The embedded stack: start, stop, look at and examine the local services."""
