"""Programs of users' functions: `jit`, `explain`, which shows programs, and the check of their kernels."""
