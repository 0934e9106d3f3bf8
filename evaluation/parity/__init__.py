"""Parity with official implementations: folders of tensors that they made, run through our networks.

    python -m evaluation.parity FOLDER...

A folder's kind is told by its files; each kind has its module here.
"""
