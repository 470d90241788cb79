"""Use case: which iris is this flower? Its models come from outside."""
