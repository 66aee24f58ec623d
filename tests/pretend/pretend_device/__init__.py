"""A device that pretends to be an accelerator: torch calls it "pretend", there are two, and the CPU does their work.

Whatever runs with the folder above this one on PYTHONPATH has it: when torch is imported, in workers too, it loads what is
installed under the entry points ``torch.backends``. ``commands.with_pretend_device()`` is such an environment.

Its tensors are plain ones, whose memory is the CPU's; an operation on them runs on the CPU, and so gives what the CPU gives,
bit for bit. As on a GPU, tensors of two devices do not go together (0-dim ones of the CPU do), each device draws its random
numbers on its own, and a fork of a process that has used a device cannot use any.

``torch.pretend.counted()`` says what was done there, and the file that the variable PRETEND_DEVICE_LOG names gets a line
``PROCESS INDEX`` for each device that a process uses.

What it is not: ``x.to("pretend")`` goes to the first device, whichever is the current one; a backward pass on the first runs
in a thread of torch's, as on a GPU, but one on the second in the thread that asks for it; memory is never pinned, nor counted,
and nothing is ever under way; ``torch.compile`` and ``torch.func.hessian`` do not work.
"""
