"""Sweeps: which setting?"""
