"""Programs of a user's own functions: `jit`, and what `explain` shows of them."""
