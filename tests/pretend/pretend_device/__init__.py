"""A device that pretends to be an accelerator: torch calls it "pretend", there are two, and the CPU does their work.

Whatever runs with this package's folder on PYTHONPATH has it: torch loads what is installed for its group of entry points
``torch.backends`` when it is imported, in workers too. ``commands.with_pretend_device()`` is such an environment.

Its tensors are plain ones, whose memory is the CPU's; an operation on them runs on the CPU, and so gives what the CPU gives,
bit for bit. As on a GPU, tensors of two devices do not go together (0-dim ones of the CPU do), each device draws its random
numbers on its own, and a fork of a process that has used a device cannot use any.

``torch.pretend.counted()`` says what was done there, and the file that the variable PRETEND_DEVICE_LOG names gets a line
``PROCESS INDEX`` for each device that a process uses.

What torch's interface for devices in Python does not have: pinned memory, streams and statistics of memory. A backward
pass on the first device runs in a thread of torch's, as on a GPU; on the second one, of which that thread knows nothing,
in the thread that asks for it. And ``x.to("pretend")`` goes to the first, whichever is the current one.
"""
