"""Programs: what Python does with tensors, traced, and run again in one native call.

Read in this order: `trace.py`, `pure.py`, `graph.py`, `fusion.py` and `group.py`, `layout.py`, `program.py`,
`cache.py`.
"""
