"""Use case: how many seats has an aircraft?"""
