"""The loop in tensors, and its reverse: time, step size and every decision are tensors, so no host is needed.

Python's `while` runs it (a step size for each sample, in eager mode), or one compiled loop (`compile=True`); the loop
itself does not know which. The state is y; everything that belongs to time has the shape S: () with one step size for
the batch, (batch, 1, …, 1) with a step size for each sample.

A run goes in chunks of as many accepted steps as the buffers have room for; so the number of steps is no constant of
a compiled loop. `forward` goes on until the buffers are full or the end is reached, then reads the outputs off the
continuous extension; `backward` undoes the steps from the last to the first; `chunks` is the host's side of both.
"""
