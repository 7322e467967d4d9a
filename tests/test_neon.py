"""All vector code of the library, assembled for ARM: elementwise programs, tiles, functions of rows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

TRIPLE = "aarch64-unknown-linux-gnu"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Build all functions for NEON in another process, where nothing runs: name -> LLVM IR."""
    file = tmp_path_factory.mktemp("neon") / "texts.json"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "tests.neon", str(file)], check=True, cwd=root, timeout=300)
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def assemble():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE)
    machine = target.create_target_machine(cpu="neoverse-n1", features="+neon", opt=2)

    def assembly(text):
        module = llvm.parse_assembly(re.sub('target triple = ".*"', f'target triple = "{TRIPLE}"', text))
        module.verify()
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        builder.getModulePassManager().run(module, builder)
        return machine.emit_assembly(module)

    return assembly


def test_the_texts_are_those_of_all_parts(texts):
    """One of each: formulas, gradients, fused chains, tiles, pooling, reductions, softmax, norms, gates."""
    assert len(texts) > 450
    parts = "exp where dropout cast fill adam_update silu_vjp norm_affine random_uniform gemm_float32 neg_exp"
    parts += " conv_float32 conv_dot_float32 conv_frame_float32 pack_float32 max_pool_float64 row_sum row_max"
    parts += " epilogue_linear_gelu row_moments row_log_softmax row_lstm row_gru row_rnn row_drop row_mask"
    parts += " row_turn"
    missing = [part for part in parts.split() if not any(part in name for name in texts)]
    assert not missing


def test_every_function_assembles_for_neon_and_calls_nothing(texts, assemble):
    scalar = []
    for name, text in texts.items():
        code = assemble(text)
        called = set(re.findall(r"\tbl\t(\S+)", code))
        assert called <= {"memcpy", "memset", "memmove"}, name
        if re.search(r"<\d+ x (float|double|i32|i64)>", text) and not re.search(
            r"v\d+\.\d+[bhsd]|\bq\d+", code
        ):
            scalar.append(name)
    assert not scalar
