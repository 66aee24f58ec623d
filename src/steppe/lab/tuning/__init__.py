"""Choosing settings on validation data."""
