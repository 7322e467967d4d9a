"""Programs: traces that are planned (graph, fusion, memory) and run in one native call.

Read in this order: `call.py`, `pure.py`; `graph.py`, `fusion.py`, `group.py`, `memory.py`; `request.py`,
`instance.py`, `program.py`; `cache.py`; `profile.py`.
"""
