"""The optional coordinator of a shoal: parameter server, vote counter, address book.

No algorithm that this version ships needs one, so the package holds no code yet.
"""
