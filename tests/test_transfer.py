"""The example's BERT against NumPy, PyTorch's modules and `transformers`, with the same files."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy

import treepie as tp
from treepie.examples import finetune, transfer

TEXTS = ["The film was very good.", "The plot was unbearable and the food was lovely, xyz!", "Music"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT as the example writes it, with weights so large that every part matters."""
    path = tmp_path_factory.mktemp("bert")
    transfer.write(path)
    weights = safetensors.numpy.load_file(path / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, x in weights.items():
        spread = 0.5 if name.endswith(".bias") or "LayerNorm" in name else 0.2
        weights[name] = rng.normal(name.endswith("LayerNorm.weight"), spread, x.shape).astype("f4")
    safetensors.numpy.save_file(weights, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def batch(folder):
    ids, types, mask = transfer.tokenize(TEXTS, folder)
    types[1, 7:] = 1
    assert mask.sum(axis=1).tolist() == [8, 17, 3]
    return ids, types, mask


def run(folder, batch, dtype=tp.float32):
    model, vars, report = transfer.load(folder)
    assert len(report.loaded) == 39
    assert not report.missing_keys + report.unexpected_keys
    vars = tp.layer.Vars(tp.ptree.map(lambda w: w.astype(dtype), vars.params), vars.state, dtype)
    encoded, pooled = model.apply(vars, batch)[0]
    return encoded.numpy(), pooled.numpy()


def compare(results, expected, mask, bound):
    """Compare where there are tokens; what is computed for padding is not used."""
    np.testing.assert_allclose(results[0][mask], expected[0][mask], rtol=0, atol=bound)
    np.testing.assert_allclose(results[1], expected[1], rtol=0, atol=bound)


# ---- NumPy
def reference(folder, ids, types, mask):
    """Return BERT's outputs in float64, from the file itself."""
    config = json.loads((folder / "config.json").read_text())
    w = {n: x.astype("f8") for n, x in safetensors.numpy.load_file(folder / "model.safetensors").items()}
    heads, width = config["num_attention_heads"], config["hidden_size"]
    erf = np.vectorize(math.erf)

    def dense(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def split(x):
        return x.reshape(*x.shape[:2], heads, width // heads).transpose(0, 2, 1, 3)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][types]
    x = norm("embeddings.LayerNorm", x + w["embeddings.position_embeddings.weight"][: ids.shape[1]])
    for k in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{k}"
        q, key, value = (split(dense(f"{at}.attention.self.{n}", x)) for n in ("query", "key", "value"))
        scores = q @ key.swapaxes(2, 3) / np.sqrt(width // heads)
        scores = np.where(mask[:, None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = (weights / weights.sum(-1, keepdims=True) @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(f"{at}.attention.output.LayerNorm", x + dense(f"{at}.attention.output.dense", out))
        hidden = dense(f"{at}.intermediate.dense", x)
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", hidden))
    return x, np.tanh(dense("pooler.dense", x[:, 0]))


@pytest.mark.parametrize(("dtype", "bound"), [(tp.float32, 1e-5), (tp.float64, 1e-12)])
def test_the_encoder_is_that_of_numpy(folder, batch, dtype, bound):
    compare(run(folder, batch, dtype), reference(folder, *batch), batch[2], bound)


# ---- PyTorch
def test_the_encoder_is_that_of_pytorch_modules(folder, batch):
    torch = pytest.importorskip("torch")
    w = {n: torch.from_numpy(x) for n, x in safetensors.numpy.load_file(folder / "model.safetensors").items()}
    layer = torch.nn.TransformerEncoderLayer(
        *(64, 4, 256, 0.0, "gelu", 1e-12), batch_first=True, norm_first=False
    )
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    state = {}
    for k in range(2):
        theirs, ours = f"encoder.layer.{k}", f"layers.{k}"
        for kind in ("weight", "bias"):
            parts = [w[f"{theirs}.attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
            state[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for new, name in (
                ("self_attn.out_proj", "attention.output.dense"), ("linear1", "intermediate.dense"),
                ("linear2", "output.dense"), ("norm1", "attention.output.LayerNorm"),
                ("norm2", "output.LayerNorm"),
            ):  # fmt: skip
                state[f"{ours}.{new}.{kind}"] = w[f"{theirs}.{name}.{kind}"]
    encoder.load_state_dict(state)
    ids, types, mask = (torch.from_numpy(np.asarray(x)) for x in batch)
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][types]
    x = x + w["embeddings.position_embeddings.weight"][: x.shape[1]]
    norm = "embeddings.LayerNorm"
    x = torch.nn.functional.layer_norm(x, (64,), w[f"{norm}.weight"], w[f"{norm}.bias"], 1e-12)
    with torch.no_grad():
        y = encoder(x, src_key_padding_mask=~mask)
        pooled = torch.tanh(y[:, 0] @ w["pooler.dense.weight"].T + w["pooler.dense.bias"])
    compare(run(folder, batch), (y.numpy(), pooled.numpy()), batch[2], 1e-5)


def test_the_encoder_is_that_of_transformers(folder, batch):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.BertModel.from_pretrained(folder).eval()
    ids, types, mask = (torch.from_numpy(np.asarray(x)).long() for x in batch)
    with torch.no_grad():
        out = model(input_ids=ids, token_type_ids=types, attention_mask=mask)
    expected = out.last_hidden_state.numpy(), out.pooler_output.numpy()
    compare(run(folder, batch), expected, batch[2], 1e-5)


@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining"])
def test_a_folder_that_transformers_writes(tmp_path, batch, kind):
    """With a prefix and with heads of pretraining, as google-bert/bert-base-uncased has them."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(tmp_path)
    encoder, vars, _ = transfer.load(tmp_path)
    ids, types, mask = (torch.from_numpy(np.asarray(x)).long() for x in batch)
    with torch.no_grad():
        y = getattr(model, "bert", model)(ids % 40, token_type_ids=types, attention_mask=mask)
    results = encoder.apply(vars, (batch[0] % 40, *batch[1:]))[0]
    expected = (y.last_hidden_state.numpy(), y.pooler_output.numpy())
    compare([x.numpy() for x in results], expected, batch[2], 1e-5)


def test_names_of_tensorflows_time(folder, batch, tmp_path):
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {"bert.embeddings.position_ids": np.arange(64)[None], "cls.predictions.bias": np.zeros(3, "f4")}
    for name, x in weights.items():
        end = next((k for k in old if name.endswith(k)), "")
        renamed["bert." + name.removesuffix(end) + old.get(end, "")] = x
    safetensors.numpy.save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for x, y in zip(run(tmp_path, batch), run(folder, batch), strict=True):
        np.testing.assert_array_equal(x, y)


# ---- tokens
def test_words_in_the_longest_pieces(folder):
    lines = (folder / "vocab.txt").read_text().splitlines()
    vocabulary = {piece: k for k, piece in enumerate(lines)}
    assert transfer.pieces("unbearable", vocabulary) == ["un", "##bear", "##able"]
    assert transfer.pieces("good", vocabulary) == ["good"]
    assert transfer.pieces("unx", vocabulary) == ["[UNK]"]
    ids, types, mask = transfer.tokenize(["Lovely!", "the film."], folder)
    rows = [["[CLS]", "love", "##ly", "[UNK]", "[SEP]"], ["[CLS]", "the", "film", ".", "[SEP]"]]
    assert [[lines[i] for i in row] for row in ids] == rows
    assert not types.any()
    assert mask.all()


def test_tokens_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, do_lower_case=True)
    texts = [*TEXTS, *transfer.reviews(50, seed=9)[0], "unbearableness, LOVELY"]
    for text in texts:
        assert transfer.tokenize([text], folder)[0][0].tolist() == tokenizer(text)["input_ids"]


def test_the_folder_has_the_same_bits_each_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        transfer.write(tmp_path / name)
    for file in ("config.json", "vocab.txt", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# ---- what the command lines take
def run_main(monkeypatch, module, *arguments):
    monkeypatch.setattr("sys.argv", ["example", *map(str, arguments)])
    module.main()


def test_a_folder_of_ones_own_and_a_frozen_encoder(folder, monkeypatch):
    """The head alone learns little from random weights: training ends with the error."""
    with pytest.raises(SystemExit, match="the texts were not learned"):
        run_main(monkeypatch, transfer, "--folder", folder, "--rate", 0, "--epochs", 1)


def test_finetune_draws_its_accuracies(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    adapted, scratch = [0.1 * k for k in range(1, 6)], [0.05] * 5
    finetune.draw(adapted, scratch, tmp_path / "scores.png")
    lines = plt.gca().get_lines()
    assert [line.get_ydata().tolist() for line in lines[:2]] == [adapted, scratch]
    assert (tmp_path / "scores.png").read_bytes()[:4] == b"\x89PNG"
    plt.close("all")


@pytest.mark.parametrize("module", [finetune, transfer])
def test_help(module, monkeypatch, capsys):
    with pytest.raises(SystemExit) as done:
        run_main(monkeypatch, module, "--help")
    assert done.value.code == 0
    assert f"python -m {module.__name__}" in capsys.readouterr().out
