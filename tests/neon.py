"""All LLVM IR that the library generates, for NEON's registers: `test_neon.py` assembles it for ARM.

python -m tests.neon FILE    writes the texts into a JSON file, by name

Nothing runs: a kernel's address is a stand-in, and launch tables do nothing. Of kernels that Numba compiles,
which it does for this machine alone, the functions of rows are written, where their vectors are.
"""

import gc
import inspect
import itertools
import json
import sys
from types import SimpleNamespace

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

import treepie as tp
from treepie.autodiff import OPS, plan
from treepie.autodiff.op_inputs import operands, tensors
from treepie.kernels import config, kernel, native, program, rows as row_module

TEXTS = {}


def load(name, build, calls=frozenset()):
    """Build a function's IR instead of loading its code."""
    if name not in TEXTS:
        TEXTS[name] = ""  # a function may load others
        TEXTS[name] = build()
    return 8


def stand_in():
    """Let kernels be built for NEON, and never run."""
    config.isa = lambda: "neon"
    config.vector_bytes.cache_clear()
    native.load = load
    kernel.Kernel._build = lambda self, symbol, dtypes: ""
    program.c_function = lambda *arguments, **options: ""
    program.LaunchTable.walk = lambda self, words, address: -1
    plan.direct = lambda *arguments: None


def ops():
    """Plan every row of the table for its cases and large one, with its gradient."""
    for row in OPS.values():
        if row.plan is None:
            continue
        for dtype in map(np.dtype, row.dtypes):
            for case in [*row.cases, *([row.large] if row.large else [])]:
                inputs, attributes = row.bind(*tensors(operands(row, case, dtype)), **case.attributes)
                row.planned([(t.shape, t.dtype) for t in inputs], attributes)


def rows():
    """Write the functions of rows, which Numba's kernels contain: reductions, softmax, norms, recurrences."""
    own = [f for f in gc.get_objects() if inspect.isfunction(f) and hasattr(f, "for_numba")]
    for function in own:
        if function.__module__ == row_module.__name__:
            values = inspect.getclosurevars(function.for_numba).nonlocals
            for dtype in ("float32", "float64"):
                assert row(dtype, **values), values


def row(dtype, name, formula, combine=None, outs=1, **options):
    """Write a function of rows of a dtype, or of other dtypes where its formula needs them."""
    count = len(inspect.signature(formula).parameters)
    first = int(options["stored"]) if combine else outs
    for dtypes in itertools.product((dtype, "float64", "bool", "int64", "int32"), repeat=count):
        kinds = [SimpleNamespace(dtype=d) for d in (*[dtype] * first, *dtypes)]
        try:
            text = written(kinds, name, formula, combine, outs, **options)
            llvm.parse_assembly(text).verify()
        except (TypeError, AttributeError, RuntimeError):
            continue  # a formula that mixes dtypes
        TEXTS[f"{name}_{dtype}"] = text
        return True
    return False


def written(kinds, name, formula, combine, outs, stored=False, start=0.0, start_int=0):
    module, void = ir.Module(name), ir.VoidType()
    results = row_module._result_dtypes(formula, kinds, int(stored)) if combine else []
    result = row_module._result_type(results) if combine else void
    loop = row_module._function(module, name, kinds, result, results)
    loop.function.linkage = "external"
    row = row_module._Row(loop, kinds)
    if combine is None:
        row_module._write_map(row, formula, outs)
    else:
        begin = start if "float" in results[0] else start_int
        row_module._write_reduce(row, formula, combine, results, begin, stored)
    return str(module)


def programs():
    """Trace steps of models of each kind, whose elementwise ops are fused."""
    layer, key = tp.layer, tp.rng.key(0)
    convolutions = [
        *(layer.conv2d(3, 8), layer.batch_norm(8), layer.relu(), layer.max_pool2d(2), layer.avg_pool2d(2)),
        *(layer.flatten(), layer.linear(32, 5)),
    ]
    models = [
        ([layer.linear(8, 16), layer.gelu(), layer.layer_norm(16), layer.linear(16, 5)], (4, 8)),
        (convolutions, (2, 3, 8, 8)),
        ([layer.multi_head_attention(8, 2, rope=True, is_causal=True), layer.rms_norm(8)], (2, 6, 8)),
        ([layer.lstm(4, 8), layer.gru(8, 8, return_sequences=False), layer.silu()], (2, 5, 4)),
    ]
    for dtype in (tp.float32, tp.float64):
        for parts, shape in models:
            model, opt = layer.sequential(parts), tp.optim.adamw(1e-3)
            vars = model.init(key, dtype)

            def step(params, state, x, vars=vars, model=model, opt=opt):
                def loss(p):
                    y, _ = model.apply(vars.with_params(p), x, training=True, rngs=key)
                    return tp.mean(tp.log_softmax(y, -1) ** 2) + tp.mean(tp.exp(-tp.abs(y)))

                value, grads = tp.value_and_grad(loss)(params)
                return value, *opt.update(state, params, grads)

            tp.jit(step)(vars.params, opt.init(vars.params), tp.ones(shape, dtype))


if __name__ == "__main__":
    stand_in()
    ops()
    rows()
    programs()
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({name: text for name, text in TEXTS.items() if text}, file)
