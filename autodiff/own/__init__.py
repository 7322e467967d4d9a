"""Kernels of one's own: a function that Numba compiles, or a formula, as an op with a gradient rule.

Such an op is like a row of the table: it runs in programs and in gradients, on all threads, with the same
bits at any number of them. It is not in the table.
"""

from .formula import Formula as Formula, elementwise as elementwise
from .function import OwnFunction as OwnFunction
from .kernel import Kernel as Kernel, kernel as kernel, spec as spec
