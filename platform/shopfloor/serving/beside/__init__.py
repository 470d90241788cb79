"""Processes that run beside a replica: the shadow, and the rehearsal of a version before it is loaded."""
