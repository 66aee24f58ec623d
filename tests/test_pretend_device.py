"""The device that pretends to be an accelerator, in a process that has it: this one must not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from commands import end, started, with_pretend_device


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this torch knows no devices in Python")
def test_it_does_what_an_accelerator_does():
    tests = Path(__file__).with_name("on_pretend_device.py")
    process = started("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, env=with_pretend_device())
    try:
        output, _ = process.communicate(timeout=250)
    finally:
        end(process)
    assert process.returncode == 0, output


def test_nobody_else_has_it():
    assert not hasattr(torch, "pretend")
