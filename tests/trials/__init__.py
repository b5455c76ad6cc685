"""Inputs that once gave a wrong answer, lost work, hung or ended in a traceback: one file per kind of fault.

Each file holds a small generator of the input, the input that showed the fault, and variants of it that did not: a
fault is mended as a kind, in one place, and not as an example. The names of the files are the names of the kinds.
"""
