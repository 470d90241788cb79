"""Features that are looked up while a request waits."""
