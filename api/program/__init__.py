"""Programs of users' functions: `jit`, and `explain`, which shows programs."""
