"""Products in bfloat16 for NEON: assembled for ARM, and run with its instructions in portable LLVM IR."""

import ctypes
import re
from types import SimpleNamespace

import llvmlite.binding as llvm
import pytest

from treepie.kernels import bfmmla, config, gemm, matmul_bfloat16, native
from treepie.kernels.program import LaunchTable

from .cpus import written_for
from .planned import FLOAT32, product
from .test_precision import assert_close, normal

TRIPLE = "aarch64-unknown-linux-gnu"


@pytest.fixture
def neon():
    """Write functions for NEON with BF16."""
    with written_for("neon", "neoverse-v1", "+neon,+bf16") as patch:
        yield patch


@pytest.fixture
def texts(neon):
    """Functions that products need, by name."""
    written = {}
    neon.setattr(native, "load", lambda name, build: written.setdefault(name, build()) and 8)
    for high in (8, 4, 2):
        for columns in (4, 12):
            bfmmla.micro_kernel(columns, high)
            gemm.micro_kernel("float32", columns, high, pairs=True)
    for transposed in (False, True):
        gemm.row_packer(transposed)
        gemm.packer("float32", 12, transposed, pairs=True)
    return written


def assembly(text):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(
        cpu="neoverse-v1", features="+neon,+bf16", opt=3
    )
    module = llvm.parse_assembly(re.sub('target triple = ".*"', f'target triple = "{TRIPLE}"', text))
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module)


def test_functions_assemble_for_neon_with_bfloat16(texts):
    assert len(texts) == 16
    for name, text in texts.items():
        code = assembly(text)
        assert not re.search(r"\tbl\t", code), name
        if name.startswith("bfmmla"):
            high, columns = map(int, name.removeprefix("bfmmla_").split("x"))
            count, instruction = high * columns // 4, "bfmmla"
        elif name.startswith("gemm"):
            high, columns = map(int, re.findall(r"_(\d+)x(\d+)_", name)[0])
            count, instruction = high * columns // 4, "bfdot"
        else:
            count, instruction = 0, "bfcvtn2?"
        found = len(re.findall(rf"\t{instruction}\t", code))
        assert found == count if count else found > 0, name
        if name in ("bfmmla_8x12", "gemm_float32_8x12_pairs"):
            loop = re.split(r"\n\.LBB\w+:", code)
            body = max(loop, key=lambda block: block.count(f"\t{instruction}\t"))
            assert not re.search(r"\tstr\tq|\tldr\tq\d+, \[sp", body)  # no accumulator is spilled


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("has", [True, False])
def test_the_system_tells_of_the_extension(monkeypatch, system, has):
    """Linux in the auxiliary vector, where 1 << 13 is another feature; macOS by name."""

    def getauxval(word):
        return (1 << 13) | (1 << 14) * has if word == 26 else 0

    def sysctlbyname(name, value, size, new, new_size):
        value._obj.value = int(has and name == b"hw.optional.arm.FEAT_BF16")
        return 0

    fake = SimpleNamespace(getauxval=getauxval, sysctlbyname=sysctlbyname)
    monkeypatch.setattr(config.platform, "machine", lambda: "aarch64" if system == "linux" else "arm64")
    monkeypatch.setattr(config.sys, "platform", system)
    monkeypatch.setattr(config.ctypes, "CDLL", lambda name: fake)
    assert config._more_features() == (["+bf16"] if has else [])
    monkeypatch.setattr(config.platform, "machine", lambda: "x86_64")
    assert config._more_features() == []


def portable(text):
    """Define the instructions of NEON in a function's IR."""
    for name, products in {
        "bfmmla": [[(4 * (i // 2) + k, 4 * (i % 2) + k) for k in range(4)] for i in range(4)],
        "bfdot.v4f32.v8bf16": [[(2 * i + k, 2 * i + k) for k in range(2)] for i in range(4)],
    }.items():
        declaration = re.search(rf'declare .*@"?llvm\.aarch64\.neon\.{re.escape(name)}"?\(.*', text)
        if declaration:
            text = text.replace(declaration[0], defined(name, products))
        text = text.replace(f"llvm.aarch64.neon.{name}", f"emulated.{name}")
    # Where the CPU has no instruction that rounds, LLVM calls a function that is not there.
    rounding = r"fptrunc (<4 x float>) (\S+) to (<4 x bfloat>)"
    text, found = re.subn(rounding, r'call \3 @"emulated.round"(\1 \2)', text)
    assert "fptrunc" not in text
    return text + ROUND if found else text


#: Finite float32 rounded to bfloat16, to nearest even.
ROUND = """
define internal <4 x bfloat> @"emulated.round"(<4 x float> %x) {
%bits = bitcast <4 x float> %x to <4 x i32>
%high = lshr <4 x i32> %bits, <i32 16, i32 16, i32 16, i32 16>
%odd = and <4 x i32> %high, <i32 1, i32 1, i32 1, i32 1>
%half = add <4 x i32> %odd, <i32 32767, i32 32767, i32 32767, i32 32767>
%sum = add <4 x i32> %bits, %half
%upper = lshr <4 x i32> %sum, <i32 16, i32 16, i32 16, i32 16>
%short = trunc <4 x i32> %upper to <4 x i16>
%result = bitcast <4 x i16> %short to <4 x bfloat>
ret <4 x bfloat> %result
}
"""


def defined(name, products):
    """Return a function whose results' elements are sums of products of elements of two vectors."""
    lines = [
        f'define internal <4 x float> @"emulated.{name}"(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y) {{'
    ]
    for v in "xy":
        lines += [
            f"%{v}16 = bitcast <8 x bfloat> %{v} to <8 x i16>",
            f"%{v}32 = zext <8 x i16> %{v}16 to <8 x i32>",
            f"%{v}s = shl <8 x i32> %{v}32, <{', '.join(['i32 16'] * 8)}>",
            f"%{v}f = bitcast <8 x i32> %{v}s to <8 x float>",
        ]
    result = "%c"
    for i, terms in enumerate(products):
        lines.append(f"%t{i} = extractelement <4 x float> %c, i32 {i}")
        total = f"%t{i}"
        for k, (left, right) in enumerate(terms):
            lines += [
                f"%l{i}_{k} = extractelement <8 x float> %xf, i32 {left}",
                f"%r{i}_{k} = extractelement <8 x float> %yf, i32 {right}",
                f"%p{i}_{k} = fmul float %l{i}_{k}, %r{i}_{k}",
                f"%s{i}_{k} = fadd float {total}, %p{i}_{k}",
            ]
            total = f"%s{i}_{k}"
        lines.append(f"%o{i} = insertelement <4 x float> {result}, float {total}, i32 {i}")
        result = f"%o{i}"
    return "\n".join([*lines, f"ret <4 x float> {result}", "}"])


@pytest.fixture
def loaded():
    """Load what runs on this CPU, before functions are written for another one."""
    matmul_bfloat16._chunks.entry((FLOAT32,) * 4)
    LaunchTable([]).run([])


@pytest.fixture
def here(loaded, neon):
    """Compile NEON's functions for this CPU."""
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=2,
        codemodel="large",  # constants may lie farther from a function than 2 GB
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    addresses = {}

    def load(name, build):
        if name not in addresses:
            engine.add_module(llvm.parse_assembly(portable(build())))
            engine.finalize_object()
            addresses[name] = engine.get_function_address(name)
        return addresses[name]

    neon.setattr(native, "load", load)
    return addresses


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="addresses have 64 bits")
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 9, 30), (2, 1, 3), (3, 7, 33), (9, 70, 65), (33, 801, 12), (16, 1300, 26), (40, 33, 4)],
)
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
def test_products_are_those_of_rounded_operands(here, m, k, n, transposed):
    a, b = normal(m, k), normal(k, n)
    assert_close(product(a, b, *transposed), a, b)
    assert any(name.startswith("bfmmla" if m > 1 else "gemm") for name in here)
