"""Training: `Trainer`, and what its steps are made of.

Read in this order: `trainer.py`, `runner.py`, `steps.py`, `step.py`, `finish.py`, `plan.py`, `state.py`.
"""
