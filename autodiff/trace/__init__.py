"""Traces: a user's Python runs on symbolic tensors, and the ops that it calls are recorded.

Read in this order: `active.py`, `entry.py`, `trace.py`, `number.py`, `reuse.py`, `repeat.py`, `compare.py`.
"""
