"""`shoal reproduce`: the papers' claims, each an experiment that anyone can repeat."""
