"""Data and what is made of them: versions (DVC), checks (Great Expectations), features and the online store (Feast)."""
