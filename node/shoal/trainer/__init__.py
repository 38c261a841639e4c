"""The child process of a node: the user's task, the algorithm, and the vector on its device.

`__main__.py` starts it, `host.py` carries the worker, `keeper.py` writes checkpoints and models, `outbox.py` puts
messages into shared memory. It speaks to its daemon alone, over `link.py`, and ends when the daemon does.
"""
