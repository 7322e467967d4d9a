"""Pretrained weights from folders, and through huggingface_hub from its cache; processes of one size."""

import json
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

import treepie as tp

WEIGHTS = {
    "embed.weight": np.arange(6, dtype="f4").reshape(2, 3),
    "layers.0.bias": np.array([1.5, -2.0], "f2"),
    "layers.0.scale": np.array(3.0),
    "steps": np.array([7], "i8"),
    "mask": np.array([True, False]),
    "small": np.array([-3, 4], "i1"),
}
DTYPES = ("float32", "float32", "float64", "int64", "bool", "int32")


def check(weights):
    assert weights.keys() == WEIGHTS.keys()
    for (name, want), dtype in zip(WEIGHTS.items(), DTYPES, strict=True):
        assert weights[name].dtype.name == dtype
        np.testing.assert_array_equal(weights[name], want)


def single(folder):
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(WEIGHTS, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 3, "layers": [1, 2]}))
    return folder


def sharded(folder):
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(WEIGHTS)
    files = {name: f"model-{k // 2 + 1:05d}-of-00003.safetensors" for k, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: WEIGHTS[name] for name in names if files[name] == file}
        safetensors.numpy.save_file({**part, "not in the index": np.zeros(1)}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("make", [single, sharded])
def test_a_folder(tmp_path, make):
    folder = make(tmp_path / "model")
    check(tp.hub.load_weights(folder))
    check(tp.hub.load_weights(str(folder), offline=True))


def test_a_config(tmp_path):
    assert tp.hub.load_config(single(tmp_path)) == {"hidden_size": 3, "layers": [1, 2]}


def test_what_is_wrong_in_a_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"load_weights: .* has no model.safetensors and no model.saf"
    ):
        tp.hub.load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"load_config: .* has no config.json"):
        tp.hub.load_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json holds a list, expected a JSON object"):
        tp.hub.load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged, expected JSON"):
        tp.hub.load_config(tmp_path)
    index = sharded(tmp_path) / "model.safetensors.index.json"
    last = tmp_path / "model-00003-of-00003.safetensors"
    safetensors.numpy.save_file({"other": np.zeros(1)}, last)
    with pytest.raises(KeyError, match=r"model-00003-of-00003.safetensors has no 'small', which model.saf"):
        tp.hub.load_weights(tmp_path)
    last.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model-00003-of-00003.safetensors is damaged or no safetensors"):
        tp.hub.load_weights(tmp_path)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model-00003-of-00003.safetensors, which model.saf"):
        tp.hub.load_weights(tmp_path)
    for wrong in ({}, {"weight_map": {"a": "../secret"}}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="has no 'weight_map' from names to files beside it"):
            tp.hub.load_weights(tmp_path)


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere", "./model", "name"])
def test_what_is_neither_a_folder_nor_a_model(name):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*', nor is it like 'org/model'"):
        tp.hub.load_weights(name)
    with pytest.raises(TypeError, match="model is a int, expected a folder or 'org/model'"):
        tp.hub.load_weights(3)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'need huggingface_hub: pip install "treepie\[hub\]"'):
        tp.hub.load_weights("org/model")


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A huggingface_hub of which files are in folders, with its names and its errors."""
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})
    errors.LocalEntryNotFoundError = type("Local", (FileNotFoundError, errors.EntryNotFoundError), {})
    package = types.ModuleType("huggingface_hub")
    asked = []

    def download(repo_id, filename, *, revision, local_files_only):
        asked.append((repo_id, filename, revision, local_files_only))
        if repo_id == "org/away":
            raise errors.LocalEntryNotFoundError("no connection")
        if (tmp_path / repo_id / filename).is_file():
            return str(tmp_path / repo_id / filename)
        raise (errors.LocalEntryNotFoundError if local_files_only else errors.EntryNotFoundError)(filename)

    package.hf_hub_download, package.errors = download, errors
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


@pytest.mark.parametrize("make", [single, sharded])
@pytest.mark.parametrize("offline", [False, True])
def test_a_model_of_the_hub(tmp_path, fake_hub, make, offline):
    make(tmp_path / "org" / "my-model_1.0")
    check(tp.hub.load_weights("org/my-model_1.0", offline=offline, revision="v2"))
    assert {row[0] for row in fake_hub} == {"org/my-model_1.0"}
    assert {row[2:] for row in fake_hub} == {("v2", offline)}


def test_a_model_that_the_hub_does_not_have(tmp_path, fake_hub):
    single(tmp_path / "org" / "model")
    assert tp.hub.load_config("org/model")["hidden_size"] == 3
    for offline in (False, True):
        with pytest.raises(FileNotFoundError, match=r"org/other has no model.safetensors and no"):
            tp.hub.load_weights("org/other", offline=offline)
    with pytest.raises(FileNotFoundError, match="org/away could not be fetched: no connection"):
        tp.hub.load_weights("org/away")


def test_the_real_cache_without_a_network(tmp_path, monkeypatch):
    """Where huggingface_hub is installed: a cache as it makes one is read, and nothing is asked for."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--model"
    sharded(model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    check(tp.hub.load_weights("org/model", offline=True))
    with pytest.raises(FileNotFoundError, match=r"org/none has no model.safetensors"):
        tp.hub.load_weights("org/none", offline=True)


# ---- processes
LAUNCHED = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "env",
    [{}, {"OMPI_COMM_WORLD_SIZE": "1"}, {"SLURM_NTASKS": "8"}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}],
)
def test_one_process(monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    comm = tp.distributed.world()
    assert (comm.size, comm.rank) == (1, 0)
    x = np.arange(10, dtype="f4")[:, None]

    def fit(shard, **options):
        train = tp.Data.prepare((x, 2 * x), batch_size=3, shuffle=tp.rng.key(0))
        t = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.01))
        train = train.shard(comm) if shard else train
        return t.fit(t.init(tp.rng.key(0)), train, loss=tp.loss.mse, **options).vars.params["weight"].item()

    assert fit(True, comm=comm) == fit(False)


def test_what_is_no_communicator():
    data = tp.Data.of_array([1])
    with pytest.raises(TypeError, match=r"Data.shard: comm is a int, expected a communicator, such as"):
        data.shard(4)
    t = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.01))
    with pytest.raises(TypeError, match=r"Trainer.fit: comm is a str"):
        t.fit(t.init(tp.rng.key(0)), data, comm="world")


def test_a_model_that_is_a_pickle_or_a_file(tmp_path, fake_hub):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(FileNotFoundError, match=r"expected either \(pytorch_model.bin is a pickle: "):
        tp.hub.load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is a file, expected its folder \(tp.checkpoint.load "):
        tp.hub.load_weights(tmp_path / "pytorch_model.bin")
