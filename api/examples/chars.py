"""A small GPT that learns to write, character by character: `python -m treepie.examples.chars [file.txt]`.

The text is by default the English that comes with Python, its help topics. `--steps N` trains for longer.
"""

import argparse
import pydoc_data.topics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import treepie as tp

TOKENS, BATCH, WIDTH, HEADS, BLOCKS = 128, 16, 128, 4, 4


def block() -> tp.layer.Layer:
    """Return a block of the model: attention, then two linear layers, each with a residual connection."""
    attention = tp.layer.multi_head_attention(WIDTH, HEADS, is_causal=True, rope=True)
    mlp = [tp.layer.linear(WIDTH, 4 * WIDTH), tp.layer.gelu(), tp.layer.linear(4 * WIDTH, WIDTH)]
    return tp.layer.sequential(
        [
            tp.layer.residual(tp.layer.sequential([tp.layer.layer_norm(WIDTH), attention])),
            tp.layer.residual(tp.layer.sequential([tp.layer.layer_norm(WIDTH), *mlp])),
        ]
    )


def gpt(vocabulary: int) -> tp.layer.Layer:
    """Return the model: (batch, tokens) of integers -> (batch, tokens, vocabulary) of logits."""
    return tp.layer.sequential(
        [
            tp.layer.embedding(vocabulary, WIDTH, scale=False),
            *(block() for _ in range(BLOCKS)),
            tp.layer.layer_norm(WIDTH),
            tp.layer.linear(WIDTH, vocabulary),
        ]
    )


def generate(trainer: tp.Trainer, st: Any, prompt: list[int], count: int, key: tp.Tensor) -> list[int]:
    """Return characters sampled from the model after a prompt of at least TOKENS of them."""
    codes = list(prompt)
    for k in range(count):
        logits = trainer.predict(st, np.array([codes[-TOKENS:]], np.int32))[0, -1]
        codes.append(int(tp.rng.categorical(tp.rng.fold_in(key, k), logits / 0.8)))
    return codes[len(prompt) :]


def main() -> None:
    """Train, print generated text on the way; exit with 1 if the loss is above 1.8 after 1000 steps."""
    parser = argparse.ArgumentParser("python -m treepie.examples.chars", description=main.__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a text (default: Python's help topics)")
    parser.add_argument("--steps", type=int, default=1000, help="(default: 1000)")
    arguments = parser.parse_args()
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[k] for k in sorted(topics))
    if arguments.file is not None:
        text = arguments.file.read_text(encoding="utf-8")

    alphabet = sorted(set(text))
    indices = {c: k for k, c in enumerate(alphabet)}
    codes = np.array([indices[c] for c in text], np.int32)
    rng = np.random.default_rng(0)

    def example(i: int) -> tuple[np.ndarray, np.ndarray]:
        starts = rng.integers(0, len(codes) - TOKENS, BATCH)[:, None] + np.arange(TOKENS)
        return codes[starts], codes[starts + 1]

    trainer = tp.Trainer(gpt(len(alphabet)), tp.optim.adamw(1e-3))
    st = trainer.init(rngs=tp.rng.key(0))
    parameters = tp.ptree.count_parameters(st.vars.params)
    print(f"{len(text)} characters, {len(alphabet)} different ones; {parameters} parameters")
    losses: list[float] = []
    start = time.perf_counter()

    def report(step: int, loss: float, st: Any) -> None:
        losses.append(loss)
        if step % 200 == 0 or step == arguments.steps:
            characters = generate(trainer, st, codes[:TOKENS].tolist(), 160, tp.rng.key(step))
            seconds = time.perf_counter() - start
            print(f"\nstep {step}, loss {np.mean(losses[-50:]):.3f}, {seconds:.0f} s", flush=True)
            print("    " + "".join(alphabet[c] for c in characters).replace("\n", "\n    "), flush=True)

    data = tp.Data.of_fn(arguments.steps, example)
    trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse, report=report)
    if arguments.steps >= 1000 and np.mean(losses[-50:]) >= 1.8:
        sys.exit("the loss did not fall below 1.8")


if __name__ == "__main__":
    main()
