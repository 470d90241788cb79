"""What a command or a step does to an endpoint: declare it, assign versions, verify. Imports no model library."""
