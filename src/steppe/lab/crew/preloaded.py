"""Imports what every worker needs: done once, by the process whose forks they are."""

import torch._dynamo  # what torch imports at the first step of an optimizer

from ..trials import trial

__all__ = ["torch", "trial"]
