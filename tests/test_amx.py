"""Tile kernels of AMX: assembled for Sapphire Rapids, and run with the instructions on tiles in NumPy."""

import ctypes
import re
import threading

import llvmlite.binding as llvm
import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops
from treepie.kernels import amx, bfloat16, native

from .cpus import written_for
from .planned import product
from .test_precision import assert_close, normal

SHAPES = [(high, columns) for high in (16, 32) for columns in (16, 32)]
SIGNATURES = {
    "ldtilecfg": [ctypes.c_int64],
    "tilerelease": [],
    "tilezero": [ctypes.c_int8],
    "tileloadd64": [ctypes.c_int8, ctypes.c_int64, ctypes.c_int64],
    "tilestored64": [ctypes.c_int8, ctypes.c_int64, ctypes.c_int64],
    "tdpbf16ps": [ctypes.c_int8] * 3,
}
needs_bfloat16 = pytest.mark.skipif(not bfloat16.native(), reason="packing needs a CPU with AVX512-BF16")


@pytest.mark.parametrize(("high", "columns"), SHAPES)
def test_functions_assemble_for_a_cpu_with_amx(high, columns):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        cpu="sapphirerapids", features="+amx-tile,+amx-bf16", opt=3, reloc="pic", codemodel="small"
    )
    module = llvm.parse_assembly(host_text("f", high, columns, 'target triple = "x86_64-unknown-linux-gnu"'))
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    code = machine.emit_assembly(module)
    down, across = high // 16, columns // 16
    counts = {
        name: len(re.findall(rf"\t{name}\t?", code)) for name in ("tdpbf16ps", "tileloadd", "tilestored")
    }
    assert counts == {"tdpbf16ps": down * across, "tileloadd": down + across, "tilestored": down * across}
    for name in ("ldtilecfg", "tilezero", "tilerelease"):
        assert f"\t{name}" in code
    assert "call" not in code
    assert len(machine.emit_object(module)) > 500


def host_text(symbol, high, columns, triple):
    """Return a function's LLVM IR for a target."""
    return re.sub('target triple = ".*"', triple, text_of(symbol, high, columns))


def text_of(symbol, high, columns):
    """Return a function's LLVM IR, with vectors of AVX-512, which CPUs with tiles have."""
    with written_for("avx512", "sapphirerapids", "+avx512f,+fma,+amx-tile,+amx-bf16"):
        return amx.text(symbol, high, columns)


class Tiles:
    """The instructions on tiles as Intel's manual has them; a wrong use is kept as a problem."""

    def __init__(self):
        self.problems, self.counts, self.keep = [], dict.fromkeys(SIGNATURES, 0), []
        #: What the tiles of each thread hold, while they are configured.
        self.threads = {}
        for name, arguments in SIGNATURES.items():
            function = ctypes.CFUNCTYPE(None, *arguments)(self.checked(name))
            self.keep.append(function)
            llvm.add_symbol(f"emulated_{name}", ctypes.cast(function, ctypes.c_void_p).value)

    def checked(self, name):
        def call(*arguments):
            self.counts[name] += 1
            try:
                getattr(self, name)(*arguments)
            except Exception as error:  # a callback can not raise
                self.problems.append(f"{name}{arguments}: {error!r}")

        return call

    @property
    def tiles(self):
        return self.threads[threading.get_ident()]

    def ldtilecfg(self, address):
        data = ctypes.string_at(address, 64)
        assert data[0] == 1  # palette
        assert not any(data[1:16] + data[32:48] + data[56:])  # reserved, or of tiles that are not there
        columns = np.frombuffer(data[16:32], np.uint16)
        shapes = [(int(r), int(c)) for r, c in zip(data[48:56], columns, strict=True)]
        assert all(r <= 16 and c <= 64 and c % 4 == 0 for r, c in shapes)
        self.threads[threading.get_ident()] = [np.zeros(shape, np.uint8) for shape in shapes]

    def tilerelease(self):
        del self.threads[threading.get_ident()]

    def tilezero(self, tile):
        self.tiles[tile][:] = 0

    def tileloadd64(self, tile, address, stride):
        for i, row in enumerate(self.tiles[tile]):
            row[:] = np.frombuffer(ctypes.string_at(address + i * stride, len(row)), np.uint8)

    def tilestored64(self, tile, address, stride):
        for i, row in enumerate(self.tiles[tile]):
            ctypes.memmove(address + i * stride, row.ctypes.data, len(row))

    def tdpbf16ps(self, c, a, b):
        (rows, width), (terms, columns) = self.tiles[a].shape, self.tiles[b].shape
        assert (self.tiles[c].shape, width) == ((rows, columns), 4 * terms)
        left, right = (
            (self.tiles[t].view(np.uint16).astype(np.uint32) << 16).view(np.float32) for t in (a, b)
        )
        left, right = left.reshape(rows, terms, 2), right.reshape(terms, columns // 4, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            total = self.tiles[c].view(np.float32)
            for odd in range(2):  # sums of even terms and of odd ones, each in order
                products = left[:, :, odd].astype(np.float64) @ right[:, :, odd].astype(np.float64)
                total += products.astype(np.float32)


@pytest.fixture
def tiles(monkeypatch):
    """Let products take AMX's functions, which call emulated instructions."""
    emulated, addresses = Tiles(), {}
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), codemodel="large"
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def micro_kernel(columns, high):
        if (columns, high) not in addresses:
            text = text_of(f"amx_{high}x{columns}", high, columns)
            text = re.sub(r'@"?llvm\.x86\.(\w+)"?', r"@emulated_\1", text)
            engine.add_module(llvm.parse_assembly(text))
            engine.finalize_object()
            addresses[columns, high] = engine.get_function_address(f"amx_{high}x{columns}")
        return addresses[columns, high]

    monkeypatch.setattr(amx, "micro_kernel", micro_kernel)
    monkeypatch.setattr(amx, "usable", lambda: True)
    threads = tp.get_num_threads()
    tp.set_num_threads(threads)  # forgets plans, which have addresses
    yield emulated
    tp.set_num_threads(threads)
    assert not emulated.problems
    assert not emulated.threads


@pytest.mark.parametrize(("high", "columns"), SHAPES)
@pytest.mark.parametrize("accumulate", [0, 7])
def test_a_function_computes_a_tile(tiles, high, columns, accumulate):
    rng = np.random.default_rng(high + columns)
    terms, first, last, n = 48, 1, high - 3, columns - 5
    pairs_a = rng.standard_normal((high, terms + 16, 2)).astype(np.float32)
    pairs_b = rng.standard_normal((terms, columns, 2)).astype(np.float32)
    (a, b), c = (
        ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (pairs_a, pairs_b)),
        np.ones((high, columns + 3), np.float32),
    )
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 12)(amx.micro_kernel(columns, high))
    function(
        terms, a.ctypes.data, a.strides[0], 4, b.ctypes.data, b.strides[0], c.ctypes.data, c.strides[0],
        first, last, n, accumulate,
    )  # fmt: skip
    left, right = ((x.astype(np.uint32) << 16).view(np.float32).astype(float) for x in (a[:, :terms], b))
    want = np.ones(c.shape)
    product = np.einsum("ikp,kjp->ij", left, right)[first:last, :n]
    want[first:last, :n] = product + (1 if accumulate else 0)
    np.testing.assert_allclose(c, want, rtol=1e-5, atol=1e-4)
    down, across = high // 16, columns // 16
    assert tiles.counts["tdpbf16ps"] == 3 * down * across
    assert tiles.counts["tileloadd64"] == 3 * (down + across)


@needs_bfloat16
@pytest.mark.parametrize(
    ("m", "k", "n"), [(4, 1, 1), (5, 7, 33), (17, 70, 65), (33, 801, 16), (100, 33, 40), (64, 1300, 100)]
)
def test_products_by_tiles_are_those_of_rounded_operands(tiles, m, k, n):
    a, b = normal(m, k), normal(k, n)
    with tp.precision("bfloat16"):
        for left, right in ((False, False), (False, True), (True, False), (True, True)):
            operands = (a.T.copy() if left else a, b.T.copy() if right else b)
            assert_close(ops.batch_matmul(*operands, left, right).numpy(), a, b)
        stacked = tp.matmul(np.stack([a, -a]), b).numpy()
        assert_close(stacked[1], -a, b)
        bias = normal(n)
        product = (tp.tensor(a) @ tp.tensor(b)).numpy()
        np.testing.assert_array_equal(tp.fn.linear(a, b, bias).numpy(), product + bias)
    assert tiles.counts["tdpbf16ps"] or n == 1


@needs_bfloat16
def test_what_scratch_held_before_does_not_matter(tiles):
    """Padding is written anew, where terms are no multiple of a tile's."""
    a, b = normal(33, 37), normal(37, 41)
    assert_close(product(a, b), a, b)
    assert tiles.counts["tdpbf16ps"]


def test_a_cpu_without_tiles_asks_for_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(amx, "_permitted", lambda: calls.append(1) or True)
    usable = amx.usable.__wrapped__
    monkeypatch.setattr(amx.config, "isa", lambda: "avx512")
    for features, expected in (
        ("+amx-tile,+amx-bf16", True),
        ("+amx-tile", False),
        ("-amx-tile,+amx-bf16", False),
    ):
        monkeypatch.setattr(amx.config, "cpu", lambda features=features: ("", features))
        assert usable() is expected
    assert len(calls) == 1


def test_the_permission_is_asked_of_linux_alone(monkeypatch):
    assert amx._permitted() in (True, False)  # False where the kernel has no tiles
    monkeypatch.setattr(amx.sys, "platform", "darwin")
    monkeypatch.setattr(amx.ctypes, "CDLL", None)
    assert amx._permitted() is False


def test_functions_are_compiled_through_the_cache(monkeypatch):
    names = []
    monkeypatch.setattr(native, "load", lambda name, build: names.append((name, build())) or 8)
    assert amx.micro_kernel(32, 16) == 8
    assert names[0][0] == "amx_16x32"
    assert "tdpbf16ps" in names[0][1]
