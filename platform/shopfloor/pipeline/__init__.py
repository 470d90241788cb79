"""A compiled pipeline: the one reader of KFP's IR, conditions, compilation, content keys, stored results."""
