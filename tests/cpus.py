"""LLVM IR that is written for another CPU than this one."""

import contextlib

import pytest

from treepie.kernels import bfloat16, config

_CACHED = (config.vector_bytes, config.has_fma, bfloat16.native)


@contextlib.contextmanager
def written_for(isa, cpu, features):
    """Let functions be written for a CPU's vectors and features; yield a `MonkeyPatch` that ends with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "isa", lambda: isa)
        patch.setattr(config, "cpu", lambda: (cpu, features))
        for function in _CACHED:
            function.cache_clear()
        yield patch
    for function in _CACHED:
        function.cache_clear()
