"""Autograd's switch, which records operations or not.

Each is one call into C, which a signal finds done or not begun; in torch's context managers it may be in between.
"""

from __future__ import annotations

import torch

is_recording = torch.is_grad_enabled
record = torch._C._set_grad_enabled
