"""Products in bfloat16 by AMX, in LLVM IR: tiles of 16 rows of 64 bytes, multiplied by one instruction.

A tile of A has 16 rows of 32 elements. A tile of B has 16 terms, pairs of rows, of 16 columns. These are the
rows and panels that `matmul_bfloat16.py` packs, padded with zeros to whole tiles. A function keeps up to 2 x
2 tiles of C, which use each tile of A and of B twice: all 8 tiles.

LLVM's intrinsics with the numbers of tiles are used, so that no tile is ever spilled.
"""

import ctypes
import functools
import platform
import sys

from llvmlite import ir

from . import config, native
from .loops import I8, I64, Loop, n64
from .vector import Value, declare

#: Rows of a tile, which are terms of B and columns of C as well; its bytes.
SIDE, _BYTES = 16, 1024

#: A product of fewer rows would leave more of a tile empty than it gains.
LEAST_ROWS = 4

#: Linux: the system call arch_prctl, its request for a feature of the processor's state, and that of tiles.
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18

#: Numbers of tiles: C from 0 on, A from 4, B from 6.
_A, _B, _TILES = 4, 6, 8


@functools.cache
def usable() -> bool:
    """Whether the CPU has AMX for bfloat16, and the system lets this process use tiles. Asks it for that."""
    features = config.cpu()[1].split(",")
    if config.isa() != "avx512" or not {"+amx-tile", "+amx-bf16"} <= set(features):
        return False
    return _permitted()


def _permitted() -> bool:
    """Ask Linux for the use of tiles, whose state of 8 kB threads do not have otherwise."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype, call.argtypes = ctypes.c_long, [ctypes.c_long] * 3
    return int(call(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)) == 0


def height(m: int) -> int:
    """Return the rows of the function that computes m rows, or the highest of more."""
    return SIDE if m <= SIDE else 2 * SIDE


def micro_kernel(columns: int, high: int) -> int:
    """Return the address of the function of `high` x `columns` elements of C, each of 16 or 32.

    It takes the arguments of `gemm.micro_kernel`'s functions, and reads whole tiles: k terms of A's rows and
    of B, the last ones padded with zeros to a multiple of 16.
    """
    symbol = f"amx_{high}x{columns}"
    return native.load(symbol, lambda: text(symbol, high, columns))


def configuration() -> bytes:
    """Return the shapes of all tiles as `ldtilecfg` reads them: palette 1, 16 rows of 64 bytes each."""
    columns = (64).to_bytes(2, "little") * _TILES
    return (b"\1" + bytes(15) + columns).ljust(48, b"\0") + (bytes([SIDE]) * _TILES).ljust(16, b"\0")


class _Tiles:
    """Instructions on tiles."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def call(self, name: str, *arguments: int | ir.Value) -> None:
        """Call an intrinsic: integers are numbers of tiles, values an address and a row's bytes."""
        b, values = self._loop.builder, []
        for argument in arguments:
            values.append(ir.Constant(I8, argument) if isinstance(argument, int) else argument)
        if len(values) > 1 and values[1].type == I64:
            values[1] = b.inttoptr(values[1], I8.as_pointer())
        kinds = [value.type for value in values]
        b.call(declare(self._loop.module, f"llvm.x86.{name}", ir.VoidType(), kinds), values)


def text(symbol: str, high: int, columns: int) -> str:
    """Return the LLVM IR of a function of `micro_kernel`."""
    loop = Loop(ir.Module(symbol), symbol, ir.FunctionType(ir.VoidType(), [I64] * 12), ["float32"])
    b, tiles = loop.builder, _Tiles(loop)
    k, a, row_a, _, panel, step_b, c, row_c, top, bottom, n, accumulate = loop.function.args
    down, across = range(high // SIDE), range(columns // SIDE)
    room = b.alloca(ir.ArrayType(I8, len(down) * len(across) * _BYTES))
    room.align = 64
    tiles.call("ldtilecfg", _shapes(loop))
    for number in range(len(down) * len(across)):
        tiles.call("tilezero", number)

    def step(p: ir.Value) -> list[ir.Value]:
        """Add the products of 16 terms."""
        for v in across:
            tiles.call("tileloadd64", _B + v, b.add(panel, b.add(b.mul(p, step_b), n64(64 * v))), step_b)
        for i in down:
            at = b.add(a, b.add(b.mul(row_a, n64(SIDE * i)), b.mul(p, n64(4))))
            tiles.call("tileloadd64", _A + i, at, row_a)
            for v in across:
                tiles.call("tdpbf16ps", i * len(across) + v, _A + i, _B + v)
        return []

    loop.loop(n64(0), k, SIDE, step)
    start, width = b.ptrtoint(room, I64), n64(4 * columns)
    for i in down:
        for v in across:
            at = b.add(start, n64(SIDE * i * 4 * columns + 64 * v))
            tiles.call("tilestored64", i * len(across) + v, at, width)
    tiles.call("tilerelease")

    def write(i: ir.Value) -> list[ir.Value]:
        """Write or add row i, of which n columns are in C."""
        for v in across:
            mask = loop.mask(b.sub(n, n64(SIDE * v)))
            at = b.add(c, b.add(b.mul(i, row_c), n64(64 * v)))
            value = loop.load("float32", b.add(start, b.add(b.mul(i, width), n64(64 * v))))
            add = functools.partial(_sum, loop, value, at, mask)
            total = loop.when(b.icmp_signed("!=", accumulate, n64(0)), add, [value.ir])[0]
            loop.store(value.like(total), at, mask)
        return []

    loop.loop(top, bottom, 1, write)
    b.ret_void()
    return str(loop.module)


def _sum(loop: Loop, value: Value, at: ir.Value, mask: ir.Value) -> list[ir.Value]:
    return [(loop.load("float32", at, mask) + value).ir]


def _shapes(loop: Loop) -> ir.Value:
    """Return the address of the tiles' configuration."""
    data = configuration()
    kind = ir.ArrayType(I8, len(data))
    shapes = ir.GlobalVariable(loop.module, kind, f"{loop.function.name}_shapes")
    shapes.global_constant, shapes.linkage, shapes.align = True, "internal", 64
    shapes.initializer = ir.Constant(kind, bytearray(data))
    return loop.builder.bitcast(shapes, I8.as_pointer())
