"""A BERT encoder with a new head that classifies texts: `python -m treepie.examples.transfer`.

`--folder` takes config.json, vocab.txt and model.safetensors, such as a download of
google-bert/bert-base-uncased. Without one, the example writes a small BERT of random weights in that form.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import treepie as tp

#: BERT's names and the paths here; files of TensorFlow's time say gamma and beta, and have a prefix.
NAMES = {
    r"^bert\.": "",
    r"^cls\.|position_ids$": None,  # the heads of pretraining, and a constant
    r"LayerNorm\.(weight|gamma)$": "norm.gamma",
    r"LayerNorm\.(bias|beta)$": "norm.beta",
    r"^embeddings\.(\w+)_embeddings\.weight$": r"\1.embedding",  # word, position, token_type
    r"^embeddings\.norm": "norm",
    r"^encoder\.layer\.": "blocks.",
    r"attention\.self\.([qkv])\w+\.weight": r"self_attention.\1_proj",
    r"attention\.self\.([qkv])\w+\.bias": r"self_attention.\1_bias",
    r"attention\.output\.dense\.weight": "self_attention.out_proj",
    r"attention\.output\.dense\.bias": "self_attention.out_bias",
    r"attention\.output\.norm": "norm1",
    r"intermediate\.dense": "linear1",
    r"output\.dense": "linear2",
    r"output\.norm": "norm2",
    r"^pooler\.dense": "pooler",
}


def bert(config: Mapping[str, Any]) -> tp.layer.Layer:
    """Return the encoder (Devlin et al. 2018).

    Input: indices of tokens, indices of their types, and a mask that keeps tokens, each (batch, tokens).
    Output: (batch, tokens, width), and the first token's after a linear layer and tanh, (batch, width).
    """
    width, eps, rate = config["hidden_size"], config["layer_norm_eps"], config["hidden_dropout_prob"]
    sizes = (width, config["num_attention_heads"], config["intermediate_size"], rate, config["hidden_act"])
    # In training, their dropout applies to the activation's result too, other than BERT's.
    blocks = [
        tp.layer.transformer_encoder(*sizes, norm_first=False, eps=eps)
        for _ in range(config["num_hidden_layers"])
    ]
    parts = {
        "word": tp.layer.embedding(config["vocab_size"], width, scale=False),
        "position": tp.layer.positional(config["max_position_embeddings"], width),
        "token_type": tp.layer.embedding(config["type_vocab_size"], width, scale=False),
        "norm": tp.layer.layer_norm(width, eps),
        "dropout": tp.layer.dropout(rate),
        "blocks": tp.layer.sequential(blocks),
        "pooler": tp.layer.linear(width, width),
    }

    def forward(call: tp.layer.Call, x: Any) -> tuple[tp.Tensor, tp.Tensor]:
        ids, types, mask = x
        embedded = call.position(call.word(ids)) + call.token_type(types)
        encoded = call.blocks(call.dropout(call.norm(embedded)), attention_mask=mask)
        return encoded, tp.tanh(call.pooler(encoded[:, 0]))

    return tp.layer.model(parts, forward, "bert")


def load(folder: Path | str) -> tuple[tp.layer.Layer, tp.layer.Vars, tp.hub.Report]:
    """Return the encoder in a folder, with its weights."""
    model = bert(tp.hub.load_config(folder))
    weights = tp.hub.rename(tp.hub.load_weights(folder), NAMES, transpose=r"_proj$|weight$")
    return model, *tp.hub.assign(model.init(tp.rng.key(0)), weights)


def pieces(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """Return the longest pieces of a word, from the left, with "##" before those inside of it."""
    result: list[str] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((n for n in ends if prefix + word[start:n] in vocabulary), None)
        if end is None:
            return ["[UNK]"]
        result.append(prefix + word[start:end])
        start = end
    return result


def tokenize(texts: list[str], folder: Path | str) -> tuple[np.ndarray, ...]:
    """Return the encoder's input for texts, by WordPiece with a folder's vocab.txt."""
    lines = Path(folder, "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: k for k, piece in enumerate(lines)}
    rows = []
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        tokens = ["[CLS]", *(piece for word in words for piece in pieces(word, vocabulary)), "[SEP]"]
        rows.append([vocabulary[token] for token in tokens])
    ids = np.full((len(rows), max(map(len, rows))), vocabulary["[PAD]"], np.int32)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = row
    mask = np.arange(ids.shape[1]) < np.array([[len(row)] for row in rows])
    return ids, np.zeros_like(ids), mask


# ---- texts, and a BERT to try the example with
SUBJECTS = ["film", "plot", "music", "book", "food", "service", "room", "view"]
GOOD = ["good", "great", "wonderful", "beautiful", "enjoyable", "lovely"]
BAD = ["bad", "terrible", "awful", "boring", "unbearable", "horrible"]
PIECES = ["the", "was", "very", "quite", "and", ".", "enjoy", "un", "##able", "##bear", "love", "##ly"]


def reviews(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return sentences, and whether each praises (1) or not (0)."""
    rng = np.random.default_rng(seed)
    texts, labels = [], rng.integers(0, 2, count).astype(np.int32)
    for label in labels:
        (one, two), (first, second) = rng.choice(SUBJECTS, 2), rng.choice(GOOD if label else BAD, 2)
        more = rng.choice(["", f" and the {two} was {second}"])
        texts.append(f"The {one} was {rng.choice(PIECES[2:4])} {first}{more}.")
    return texts, labels


def write(folder: Path, width: int = 64, hidden: int = 256, blocks: int = 2) -> None:
    """Write a small BERT of random weights, in BERT's own names and layouts."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *SUBJECTS, *GOOD[:4], *BAD[:4], BAD[5], *PIECES]
    embeddings = {"word": len(vocabulary), "position": 64, "token_type": 2}
    shapes: dict[str, Any] = {f"embeddings.{n}_embeddings.weight": (k, width) for n, k in embeddings.items()}
    dense, norms = {"pooler.dense": (width, width)}, ["embeddings.LayerNorm"]
    for k in range(blocks):
        block = f"encoder.layer.{k}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{block}attention.{part}"] = (width, width)
        dense |= {f"{block}intermediate.dense": (hidden, width), f"{block}output.dense": (width, hidden)}
        norms += [f"{block}attention.output.LayerNorm", f"{block}output.LayerNorm"]
    for name, shape in [*dense.items(), *((name, (width,)) for name in norms)]:
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    key = tp.rng.key(0)
    weights = {
        name: 0.02 * tp.rng.normal(tp.rng.fold_in(key, k), shape) + name.endswith("LayerNorm.weight")
        for k, (name, shape) in enumerate(shapes.items())
    }
    tp.checkpoint.save(folder / "model.safetensors", weights)
    sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": blocks}
    sizes |= {"vocab_size": len(vocabulary), "max_position_embeddings": 64, "type_vocab_size": 2}
    options = {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12}
    config = {"model_type": "bert", "num_attention_heads": 4, **sizes, **options}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")


def train(folder: str, rate: float, epochs: int) -> float:
    """Return the accuracy of the encoder in a folder with a new head, after training."""
    encoder, pretrained, report = load(folder)
    print(f"weights: {report}")
    width = pretrained.params["pooler"]["bias"].size
    parts = {"bert": encoder, "dropout": tp.layer.dropout(0.1), "head": tp.layer.linear(width, 2)}
    model = tp.layer.model(parts, lambda call, x: call.head(call.dropout(call.bert(x)[1])))
    vars = model.init(tp.rng.key(1))
    vars = vars.with_params({**vars.params, "bert": pretrained.params})
    slow = tp.optim.adamw(rate) if rate else tp.optim.frozen()
    optimizer = tp.optim.partition(
        {"slow": slow, "fast": tp.optim.adamw(1e-3)}, {"bert": "slow", "head": "fast"}
    )
    trainer = tp.Trainer(model, optimizer)

    def data(count: int, seed: int, shuffle: tp.Tensor | None = None) -> tp.Data:
        texts, labels = reviews(count, seed)
        rows = tp.Data.prepare((*tokenize(texts, folder), labels), batch_size=32, shuffle=shuffle)
        return rows.map(lambda ids, types, mask, label: ((ids, types, mask), label))

    test, metrics = data(256, seed=2), {"accuracy": tp.metric.Accuracy()}
    st = trainer.fit(
        trainer.make_state(vars),
        data(512, seed=1, shuffle=tp.rng.key(2)),
        loss=tp.loss.cross_entropy_sparse,
        epochs=epochs,
        rngs=tp.rng.key(3),
        validate=(test, metrics),
    )
    for text in reviews(4, seed=3)[0]:
        praise = tp.softmax(trainer.predict(st, tokenize([text], folder)))[0, 1].item()
        print(f"{praise:5.0%} praise: {text}")
    test.reset()
    return float(trainer.evaluate(st, test, metrics)["accuracy"])


def main() -> None:
    """Train on 512 texts, score 256 others; exit with 1 below 90 % accuracy."""
    parser = argparse.ArgumentParser("python -m treepie.examples.transfer", description=__doc__)
    parser.add_argument("--folder", help="with config.json, vocab.txt and model.safetensors")
    parser.add_argument(
        "--rate", type=float, help="of the encoder, 0 freezes it; by default 2e-5 with a folder, else 1e-3"
    )
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    default = 1e-3 if arguments.folder is None else 2e-5
    rate = default if arguments.rate is None else arguments.rate
    with tempfile.TemporaryDirectory() as own:
        if arguments.folder is None:
            write(Path(own))
        accuracy = train(arguments.folder or own, rate, arguments.epochs)
    print(f"test accuracy {accuracy:.1%}")
    if accuracy < 0.9:
        sys.exit("the texts were not learned")


if __name__ == "__main__":
    main()
