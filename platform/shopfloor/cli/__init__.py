"""The `shopfloor` command: parses, calls one library function, prints."""
