"""Loops over vectors, in LLVM IR, for the elementwise engine, the row primitives and the micro-kernels."""

from collections.abc import Callable

from llvmlite import ir

from . import config
from .vector import BITS, Value, declare, vector_type

I64 = ir.IntType(64)
I32 = ir.IntType(32)
I8 = ir.IntType(8)


def n64(number: int) -> ir.Constant:
    """Return a 64-bit integer constant."""
    return ir.Constant(I64, number)


def bytes_of(dtype: str) -> int:
    """Return the size of an element in memory; a bool takes a byte."""
    return max(BITS[dtype] // 8, 1)


class Loop:
    """Writes one function that works on `lanes` elements at a time."""

    def __init__(self, module: ir.Module, name: str, kind: ir.FunctionType, dtypes: list[str]) -> None:
        self.module = module
        self.function = ir.Function(module, kind, name)
        self.function.attributes.add("nounwind")
        bits = 8 * config.vector_bytes()
        for attribute in ("prefer-vector-width", "min-legal-vector-width"):
            set.add(self.function.attributes, f'"{attribute}"="{bits}"')
        self.lanes = bits // max(32, *(BITS[d] for d in dtypes))
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def word(self, index: int | ir.Value, words: ir.Value | None = None) -> ir.Value:
        """Load a word of an argument block, by default the function's first argument."""
        b = self.builder
        base = b.inttoptr(self.function.args[0] if words is None else words, I64.as_pointer())
        return b.load(b.gep(base, [n64(index) if isinstance(index, int) else index]))

    def loop(
        self,
        start: ir.Value,
        stop: ir.Value,
        step: int | None,
        body: Callable[..., object],
        carried: list[ir.Value] | None = None,
    ) -> list[ir.Value]:
        """Write `for (i = start; i < stop; i += step)` around `body(i, *carried)`.

        A body returns the new carried values, the loop their last ones. With step None there are none,
        and the body returns the next i.
        """
        b, before, carried = self.builder, self.builder.block, carried or []
        head, inside, after = (self.function.append_basic_block(s) for s in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(start, before)
        values = [b.phi(c.type) for c in carried]
        for phi, first in zip(values, carried, strict=True):
            phi.add_incoming(first, before)
        b.cbranch(b.icmp_signed("<", i, stop), inside, after)
        b.position_at_end(inside)
        results = body(i, *values)
        if step is None:
            i.add_incoming(results, b.block)
        else:
            i.add_incoming(b.add(i, n64(step)), b.block)
            for phi, value in zip(values, results if isinstance(results, list) else [], strict=True):
                phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return values

    def when(
        self, condition: ir.Value, body: Callable[[], list[ir.Value]], other: list[ir.Value]
    ) -> list[ir.Value]:
        """Write `if (condition) body()`; return its values, or `other` where the condition is false."""
        b, before = self.builder, self.builder.block
        inside, after = (self.function.append_basic_block(s) for s in ("then", "after"))
        b.cbranch(condition, inside, after)
        b.position_at_end(inside)
        results, last = body(), b.block
        b.branch(after)
        b.position_at_end(after)
        out = [b.phi(v.type) for v in other]
        for phi, value, old in zip(out, results, other, strict=True):
            phi.add_incoming(value, last)
            phi.add_incoming(old, before)
        return out

    def least(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Return the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", x, y), x, y)

    def splat(self, value: ir.Value) -> ir.Value:
        """Repeat a scalar in every lane."""
        nothing = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, nothing, zeros)

    def iota(self, kind: ir.Type) -> ir.Constant:
        """Return 0, 1, 2, ... as a vector."""
        return ir.Constant(ir.VectorType(kind, self.lanes), list(range(self.lanes)))

    def mask(self, count: ir.Value) -> ir.Value:
        """Return lanes < count."""
        b = self.builder
        return b.icmp_signed("<", self.iota(I32), self.splat(b.trunc(count, I32)))

    def _memory(self, dtype: str) -> tuple[str, ir.Type]:
        # In memory a bool is a byte, 0 or 1.
        if dtype == "bool":
            return "i8", I8
        return ("f" if "float" in dtype else "i") + str(BITS[dtype]), vector_type(dtype, 1)

    def load(self, dtype: str, address: ir.Value, mask: ir.Value | None = None) -> Value:
        """Load a vector, or with a mask its lanes, and zeros elsewhere."""
        b, size, (letter, element) = self.builder, bytes_of(dtype), self._memory(dtype)
        kind = ir.VectorType(element, self.lanes)
        at = b.inttoptr(address, kind.as_pointer())
        if mask is None:
            return self._loaded(dtype, b.load(at, align=size))
        name = f"llvm.masked.load.v{self.lanes}{letter}.p0"
        function = declare(self.module, name, kind, [at.type, I32, mask.type, kind])
        zeros = ir.Constant(kind, None)
        return self._loaded(dtype, b.call(function, [at, ir.Constant(I32, size), mask, zeros]))

    def load_one(self, dtype: str, address: ir.Value) -> Value:
        """Load one element into every lane."""
        pointer = self.builder.inttoptr(address, self._memory(dtype)[1].as_pointer())
        return self._loaded(dtype, self.splat(self.builder.load(pointer)))

    def prefetch(self, address: ir.Value) -> None:
        """Prefetch the cache line at an address; no address is an error."""
        at = self.builder.inttoptr(address, I8.as_pointer())
        function = declare(self.module, "llvm.prefetch.p0", ir.VoidType(), [at.type, I32, I32, I32])
        to_read, keep, data = (ir.Constant(I32, word) for word in (0, 3, 1))
        self.builder.call(function, [at, to_read, keep, data])

    def _loaded(self, dtype: str, raw: ir.Value) -> Value:
        if dtype == "bool":
            raw = self.builder.icmp_unsigned("!=", raw, ir.Constant(raw.type, None))
        return Value(self.builder, dtype, self.lanes, raw)

    def store(
        self, value: Value, address: ir.Value, mask: ir.Value | None = None, rest: bool = False
    ) -> None:
        """Store a vector, or with a mask its lanes. rest: whether they are the rest of a row, never all."""
        b, size, (letter, element) = self.builder, bytes_of(value.dtype), self._memory(value.dtype)
        kind = ir.VectorType(element, self.lanes)
        at = b.inttoptr(address, kind.as_pointer())
        raw = b.zext(value.ir, kind) if value.dtype == "bool" else value.ir
        if mask is None:
            b.store(raw, at, align=size)
        elif rest or config.isa() == "avx512":
            self._store_masked(letter, raw, at, mask, size)
        else:
            # Without AVX-512 a masked store takes many instructions, on AMD's CPUs even AVX2's own one.
            whole = ir.IntType(self.lanes)
            full = b.icmp_unsigned("==", b.bitcast(mask, whole), ir.Constant(whole, -1))
            plain, masked, after = (self.function.append_basic_block(s) for s in ("full", "part", "after"))
            b.cbranch(full, plain, masked)
            b.position_at_end(plain)
            b.store(raw, at, align=size)
            b.branch(after)
            b.position_at_end(masked)
            self._store_masked(letter, raw, at, mask, size)
            b.branch(after)
            b.position_at_end(after)

    def store_first(self, value: Value, address: ir.Value, count: int) -> None:
        """Store the first `count` lanes of a vector.

        Without AVX-512 they are stored in pieces; see `store`.
        """
        b, size = self.builder, bytes_of(value.dtype)
        if count == self.lanes or config.isa() == "avx512":
            self.store(value, address, None if count == self.lanes else self.mask(n64(count)), rest=True)
            return
        first = 0
        while first < count:
            lanes = 1 << (count - first).bit_length() - 1
            order = ir.Constant(ir.VectorType(I32, lanes), [*range(first, first + lanes)])
            piece = b.shuffle_vector(value.ir, ir.Constant(value.ir.type, ir.Undefined), order)
            at = b.inttoptr(b.add(address, n64(first * size)), piece.type.as_pointer())
            b.store(piece, at, align=size)
            first += lanes

    def _store_masked(self, letter: str, raw: ir.Value, at: ir.Value, mask: ir.Value, size: int) -> None:
        name = f"llvm.masked.store.v{self.lanes}{letter}.p0"
        function = declare(self.module, name, ir.VoidType(), [raw.type, at.type, I32, mask.type])
        self.builder.call(function, [raw, at, ir.Constant(I32, size), mask])
