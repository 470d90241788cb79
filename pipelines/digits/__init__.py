"""Use case: which digit is in a picture?"""
