"""From LLVM IR to the address of a function, through the cache on disk.

Every kernel, compiled by Numba or generated from a formula, becomes one object file with one C function. It
takes 0.4 ms to load; Numba's cache takes 9 ms, compiling 0.3 to 1 s.
"""

import functools
import os
import threading
from collections.abc import Callable

import llvmlite.binding as llvm

from . import cache, config
from .compilations import compilations

#: What kernels may call: the C library's memory functions. They do not allocate and can not raise.
_KNOWN = {"memcpy", "memmove", "memset"}

#: They are called through the global offset table of the kernel's object, which holds whole addresses. The
#: linker's stubs for other calls use a table that may be more than 2 GB away, which ends the process.
_CALLS_THROUGH_TABLE = """
!llvm.module.flags = !{!1000000000}
!1000000000 = !{i32 1, !"RtLibUseGOT", i32 1}
"""


class ForbiddenCall(RuntimeError):
    """A kernel calls a function that kernels may not call."""


_lock = threading.RLock()
_addresses: dict[str, int] = {}

if hasattr(os, "register_at_fork"):
    # A fork waits for the linker: a child would find it, and the lock, as they were in the middle of a load.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@functools.cache
def _engine() -> tuple[llvm.ExecutionEngine, llvm.TargetMachine]:
    """Start LLVM's just-in-time linker, for the CPU of `config.cpu`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = config.cpu()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=name, features=features, opt=3, reloc="pic", codemodel="small"
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
    engine.finalize_object()
    return engine, machine


def _compile(name: str, ir: str, calls: frozenset[str]) -> bytes:
    """Optimise a module whose one public function is `name`, and return its object code."""
    machine = _engine()[1]
    module = llvm.parse_assembly(ir + _CALLS_THROUGH_TABLE)
    module.verify()
    for symbol in (*module.functions, *module.global_variables):
        if not symbol.is_declaration and symbol.name != name and symbol.linkage != llvm.Linkage.private:
            symbol.linkage = llvm.Linkage.internal  # so that unused functions are dropped
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, options)
    passes = builder.getModulePassManager()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, builder)
    called = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if unknown := called - _KNOWN - calls:
        # An exception or an allocation: neither is allowed in a kernel, and the linker would not find them.
        raise ForbiddenCall(f"kernel {name} calls {sorted(unknown)}, which kernels may not")
    code: bytes = machine.emit_object(module)
    return code


def _read_or_compile(name: str, build: Callable[[], str], calls: frozenset[str]) -> bytes:
    """Return the object code that another process compiles meanwhile, or compile it."""
    with cache.compiling(name):
        code = cache.read(name)
        if code is not None:
            compilations.loaded += 1
            return code
        with compilations.one():
            code = _compile(name, build(), calls)
        cache.write(name, code)
    return code


def load(name: str, build: Callable[[], str], calls: frozenset[str] = frozenset()) -> int:
    """Return the address of the function `name`.

    It comes from this process, or from the cache on disk, or `build()` returns the LLVM IR of a module that
    defines it.  calls: external functions that it may call, which the linker can resolve.
    """
    address = _addresses.get(name)
    if address is not None:
        return address
    with _lock:
        if name not in _addresses:
            code = cache.read(name)
            if code is None:
                code = _read_or_compile(name, build, calls)
            else:
                compilations.loaded += 1
            if name in _addresses:  # a signal handler has loaded it meanwhile
                return _addresses[name]
            engine = _engine()[0]
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            engine.finalize_object()
            _addresses[name] = int(engine.get_function_address(name))
    return _addresses[name]
