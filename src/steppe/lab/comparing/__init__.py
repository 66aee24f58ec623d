"""Comparisons: does it help, which method, at what cost?"""
