"""One register of what we change in a component, and of what we know of its inside."""
