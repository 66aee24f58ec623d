"""Hosts that run the loop themselves: what each needs to take sharpness-aware steps."""
