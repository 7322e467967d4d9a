"""Linking kernels: what their object code refers to."""

import ctypes
import platform

import llvmlite.binding as llvm
import numpy as np
import pytest

from treepie.kernels import native

#: ELF's number of the relocation of an address in the object's table; that of a call by distance is 4.
R_X86_64_GOTPCRELX = 41

FILL = """
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define void @fill(ptr %to, i64 %count) {
    call void @llvm.memset.p0.i64(ptr %to, i8 0, i64 %count, i1 false)
    ret void
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the relocations of x86-64")
def test_calls_of_the_c_library_reach_any_address():
    code = native._compile("fill", FILL, frozenset())
    sections = llvm.ObjectFileRef.from_data(code).sections()
    (entries,) = [section.data() for section in sections if section.name() == b".rela.text"]
    kinds = np.frombuffer(entries, "<u8")[1::3] & 0xFFFFFFFF
    assert set(kinds) == {R_X86_64_GOTPCRELX}


def test_a_kernel_that_clears_memory_is_linked_and_runs():
    numbers = np.ones(1000)
    address = native.load("fill", lambda: FILL)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)(numbers.ctypes.data, 8 * 999)
    assert numbers.sum() == 1
