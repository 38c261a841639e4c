"""`shoal reproduce`: the papers' claims, each an experiment that anyone can repeat.

`claims.py` is the table. A claim is one file: experiment, criteria, picture; `lab.py` is where it is tried, `runs.py`
what it trains.
"""
