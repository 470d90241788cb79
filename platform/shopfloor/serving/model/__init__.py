"""A registered version that answers: loading it, rows in and predictions out."""
