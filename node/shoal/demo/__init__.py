"""`shoal demo`: real nodes on this machine (`fleet.py`), what they are compared with (`baselines.py`), and what the
person sees (`report.py`)."""
