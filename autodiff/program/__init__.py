"""Programs: traces, planned and run in one native call.

Read in this order: `pure.py`, `graph.py`, `fusion.py` and `group.py`, `layout.py`, `program.py`, `cache.py`.
"""
