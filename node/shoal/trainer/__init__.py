"""The child process of a node: the user's task, the algorithm, and the vector on its device.

`__main__.py` starts it, `host.py` carries the worker, `mail.py` its messages; `outbox.py` puts vectors into shared
memory and `windows.py` looks into that of others; `keeper.py` writes checkpoints and models. It speaks to its daemon
alone, over `link.py`, and ends when the daemon does.
"""
