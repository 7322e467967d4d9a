"""Checkpoints: what is read is what was written, or an error that names what is wrong."""

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import treepie as tp
from treepie import checkpoint
from treepie.checkpoint.checkpoint import Store

KEY = tp.rng.key(3)


def tree():
    rng = np.random.default_rng(0)
    return {
        "layers": [
            {"weight": tp.tensor(rng.normal(size=(3, 5)).astype("f4")), "bias": tp.zeros(5)},
            {"weight": tp.tensor(rng.normal(size=(5, 0))), "bias": tp.tensor(rng.normal(size=()))},
        ],
        "count": tp.tensor([1, -2], tp.int64),
        "seen": (tp.tensor([True, False]), tp.tensor([[7]], tp.int32)),
        "special": tp.tensor([np.nan, np.inf, -0.0, 1e-42]),
    }


def same(a, b):
    paths = [path for path, _ in tp.ptree.flatten_with_paths(a)]
    assert paths == [path for path, _ in tp.ptree.flatten_with_paths(b)]
    for x, y in zip(tp.ptree.leaves(a), tp.ptree.leaves(b), strict=True):
        assert (x.dtype, x.shape, x.numpy().tobytes()) == (y.dtype, y.shape, y.numpy().tobytes())


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


# ---- trees
def test_a_tree_comes_back_bit_by_bit(tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    checkpoint.save(path, tree())
    same(checkpoint.load(path, like=tree()), tree())
    flat = checkpoint.load(str(path))
    want = dict(tp.ptree.flatten_with_paths(tree()))
    assert flat.keys() == want.keys()
    same([flat[name] for name in want], list(want.values()))
    assert "layers.0.weight" in safetensors.numpy.load_file(path)
    assert names(path.parent) == [path.name]
    checkpoint.save(path, flat)
    same(checkpoint.load(path, like=tree()), tree())


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    (tmp_path / "usual").touch()
    checkpoint.save(tmp_path / "x", tree())
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "x")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.asfortranarray(np.arange(12.0, dtype="f4").reshape(3, 4)),
        np.arange(24)[::-3],
        np.broadcast_to(np.float32(2), (3, 3)),
        np.arange(3, dtype=">f8"),
        np.arange(4, dtype="i8").reshape(2, 2)[:, 1],
        np.array(5.0),
        np.zeros((3, 0, 2)),
    ],
)
def test_odd_layouts(tmp_path, array):
    checkpoint.save(tmp_path / "x", {"a": array, "more": array[..., None]})
    found = checkpoint.load(tmp_path / "x")
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x")["more"], array[..., None])


def test_like_gives_dtypes_and_extra_names_are_left_out(tmp_path):
    path = tmp_path / "x"
    checkpoint.save(path, {"w": tp.tensor([1.5, 2.5], tp.float64), "n": tp.tensor([3]), "extra": tp.ones(2)})
    found = checkpoint.load(path, like={"w": tp.zeros(2), "n": tp.zeros(1)})
    assert list(found) == ["w", "n"]
    assert found["w"].dtype == found["n"].dtype == tp.float32
    assert (found["w"].tolist(), found["n"].tolist()) == ([1.5, 2.5], [3.0])


def test_half_precision_of_other_libraries_becomes_float32(tmp_path):
    values = np.array([1.0, -2.5, 3.140625, np.inf], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "b").write_bytes(len(header).to_bytes(8, "little") + header + upper)
    safetensors.numpy.save_file({"w": values.astype(np.float16).reshape(2, 2)}, tmp_path / "h")
    for name in "bh":
        found = checkpoint.load(tmp_path / name)["w"]
        assert found.dtype == tp.float32
        assert found.numpy().ravel().tolist() == values.astype(np.float16).tolist()


def test_a_tree_without_tensors(tmp_path):
    checkpoint.save(tmp_path / "x", {"layers": [{}, ()]})
    assert checkpoint.load(tmp_path / "x") == {}
    assert checkpoint.load(tmp_path / "x", like={"layers": [{}, ()]}) == {"layers": [{}, ()]}


def test_what_a_caller_holds_is_not_the_file(tmp_path):
    path = tmp_path / "x"
    checkpoint.save(path, {"w": tp.ones(4)})
    found = checkpoint.load(path)["w"]
    with path.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(b"\0" * 16)
    assert found.tolist() == [1, 1, 1, 1]


def broken(path, how):
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[-5] ^= 1
    path.write_bytes({"empty": b"", "cut": content[:-3], "header": content[:30]}.get(how, bytes(content)))


@pytest.mark.parametrize("how", ["flipped", "empty", "cut", "header"])
def test_a_damaged_file_is_named(tmp_path, how):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, {"a": tp.ones(3), "b": tp.ones(3)})
    broken(path, how)
    key = "'b' in " if how == "flipped" else ""
    with pytest.raises(ValueError, match=rf"checkpoint.load: {key}.*model.safetensors is damaged"):
        checkpoint.load(path)


def test_errors_name_the_key_and_the_file(tmp_path):
    path = tmp_path / "m"
    checkpoint.save(path, {"layers": [{"weight": tp.ones((2, 3))}]})
    with pytest.raises(KeyError, match=r"/m has no 'layers.0.weights', did you mean 'layers.0.weight'\?"):
        checkpoint.load(path, like={"layers": [{"weights": tp.ones((2, 3))}]})
    with pytest.raises(ValueError, match=r"'layers.0.weight' in .*/m has shape \(2, 3\), expected \(3, 2\)"):
        checkpoint.load(path, like={"layers": [{"weight": tp.ones((3, 2))}]})
    with pytest.raises(TypeError, match=r"'layers.0.weight' in .*/m is float32, expected what .*, int32"):
        checkpoint.load(path, like={"layers": [{"weight": tp.ones((2, 3), tp.int32)}]})
    checkpoint.save(path, {"n": tp.tensor([2**40], tp.int64)})
    with pytest.raises(ValueError, match=r"'n' in .*/m has numbers beyond int32's range"):
        checkpoint.load(path, like={"n": tp.zeros(1, tp.int32)})
    with pytest.raises(FileNotFoundError, match=r"checkpoint.load: .*/none does not exist"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is a folder, expected a safetensors file"):
        checkpoint.load(tmp_path)
    with pytest.raises(TypeError, match=r"checkpoint.save: path is None, expected a path"):
        checkpoint.save(None, tree())
    with pytest.raises(TypeError, match="the leaf at a is a str"):
        checkpoint.save(path, {"a": "text"})
    with pytest.raises(TypeError, match=r"save_state: st is a dict, expected a state of tp.Trainer"):
        checkpoint.save_state(tmp_path, {})
    for kwargs in ({"steps": 0}, {"steps": 1, "keep": 0}):
        with pytest.raises(ValueError, match=r"checkpoint.every: (steps|keep) is 0, expected at least 1"):
            checkpoint.every(directory=tmp_path, **kwargs)


# ---- states
def trainer(optimizer=None):
    return tp.Trainer(tp.layer.linear(3, 2), optimizer or tp.optim.adam(0.1))


def states(t, count):
    """States after 0, 1, ... steps."""
    found = [t.init(KEY)]
    for _ in range(count - 1):
        x = tp.rng.normal(tp.rng.fold_in(KEY, len(found)), (4, 3))
        found.append(t.step(found[-1], x, lambda out: tp.mean(out**2))[1])
    return found


def same_state(a, b):
    assert (a.step, a.opt_state.count) == (b.step, b.opt_state.count)
    same((a.vars.params, a.vars.state), (b.vars.params, b.vars.state))
    same(a.opt_state.moments, b.opt_state.moments)


@pytest.mark.parametrize(
    "optimizer", [tp.optim.adam(0.1), tp.optim.sgd(0.1), tp.optim.rmsprop(0.1, momentum=0.9)]
)
def test_all_of_a_state_comes_back_and_goes_on(tmp_path, optimizer):
    t = trainer(optimizer)
    *_, before, after = states(t, 5)
    checkpoint.save_state(tmp_path / "run", before)
    found = checkpoint.load_state(tmp_path / "run", like=t.init(tp.rng.key(9)))
    same_state(found, before)
    x = tp.rng.normal(tp.rng.fold_in(KEY, 4), (4, 3))
    same_state(t.step(found, x, lambda out: tp.mean(out**2))[1], after)


def test_a_folder_has_the_last_state_that_was_saved(tmp_path):
    t = trainer()
    rows = states(t, 4)
    for st in (rows[3], rows[1], rows[1]):  # a second training, which is not as far
        checkpoint.save_state(tmp_path, st)
        same_state(checkpoint.load_state(tmp_path, t.init(KEY)), st)
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == ["step-00000001-2"]
    same_state(checkpoint.load_state(tmp_path / "step-00000001-2", t.init(KEY)), rows[1])
    with pytest.raises(
        ValueError,
        match=r"tensors is a state of adam with 2 moments, expected one of sgd with 0 moments, as in like",
    ):
        checkpoint.load_state(tmp_path, trainer(tp.optim.sgd(0.1)).init(KEY))
    with pytest.raises(FileNotFoundError, match=r"load_state: .*/none has no checkpoint"):
        checkpoint.load_state(tmp_path / "none", t.init(KEY))


def test_skipped_steps_are_no_updates(tmp_path):
    t = trainer()
    x = np.ones((4, 3), "f4")
    data = tp.Data.of_array([(x, 1.0), (x, np.nan), (x, 2.0)])
    loss = lambda out, factor: tp.mean(out**2) * factor
    with pytest.warns(RuntimeWarning, match="skipped"):
        st = t.fit(t.init(KEY), data, loss=loss, on_nonfinite="skip")
    checkpoint.save_state(tmp_path, st)
    found = checkpoint.load_state(tmp_path, t.init(KEY))
    assert (found.step, found.opt_state.count) == (3, 2)
    same_state(found, st)


def kept(tmp_path):
    """Two checkpoints of one run, after steps 1 and 2, and the states."""
    rows = states(trainer(), 4)
    store = Store("test", tmp_path)
    run = store.write(rows[1], {}, {}, keep=3)
    store.write(rows[2], {}, {}, keep=3, run=run)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    return rows, store, run


@pytest.mark.parametrize("file", ["tensors.safetensors", "training.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "empty", "cut", "missing"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_read(tmp_path, file, how):
    rows, _, _ = kept(tmp_path)
    path = tmp_path / "step-00000002" / file
    path.unlink() if how == "missing" else broken(path, how)
    told = "" if (file, how) == ("manifest.json", "flipped") else file  # else the sum of another file
    with pytest.warns(RuntimeWarning, match=rf"step-00000002/{told}.*trying the one before") as caught:
        same_state(checkpoint.load_state(tmp_path, rows[0]), rows[1])
    assert {w.filename for w in caught} == {__file__}
    shutil.rmtree(tmp_path / "step-00000001")
    with (
        pytest.warns(RuntimeWarning, match="step-00000002"),
        pytest.raises(ValueError, match=r"load_state: all checkpoints in .* are damaged"),
    ):
        checkpoint.load_state(tmp_path, rows[0])


def test_a_later_format_is_refused(tmp_path):
    rows, _, _ = kept(tmp_path)
    path = tmp_path / "step-00000002" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(RuntimeError, match="has format 2, expected 1: a later version"):
        checkpoint.load_state(tmp_path, rows[0])


def test_other_runs_are_not_removed(tmp_path):
    rows, store, run = kept(tmp_path)
    store.write(rows[3], {}, {}, keep=1)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    store.write(rows[1], {}, {}, keep=2, run=run)
    assert names(tmp_path) == ["step-00000001-2", "step-00000002", "step-00000003"]


def test_no_pickle_is_read_or_written():
    root = Path(tp.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        # Ranks of a job, which run the same code, send each other pickled values.
        assert "import pickle" not in text or path.parent.name == "distributed"
        assert "allow_pickle=True" not in text


# ---- files and folders of other kinds
def other_files(folder):
    """Write files of other libraries; return their paths with what the error calls them."""
    import pickle
    import zipfile

    np.savez(folder / "arrays.npz", w=np.ones(3))
    np.save(folder / "array.npy", np.ones(3))
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"...")
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("notes.txt", b"...")
    (folder / "old.pt").write_bytes(pickle.dumps({"w": [1.0]}))
    (folder / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (folder / "config.json").write_text('{"hidden_size": 768}')
    return {
        "arrays.npz": "numpy.savez",
        "array.npy": "numpy.save",
        "model.pt": "torch.save",
        "other.zip": "a zip archive",
        "old.pt": "a pickle",
        "model.h5": "an HDF5 file",
        "config.json": "a JSON file",
    }


def test_a_file_of_another_library_is_named(tmp_path):
    for name, kind in other_files(tmp_path).items():
        with pytest.raises(ValueError, match=rf"^checkpoint.load: .*{name} is .*{kind}.*, expected a safe"):
            checkpoint.load(tmp_path / name)


def test_a_file_where_a_folder_is_expected(tmp_path):
    (tmp_path / "file").write_text("")
    st = tp.Trainer(tp.layer.linear(3, 2), tp.optim.sgd(0.1)).init(KEY)
    for call, name in (
        (lambda path: checkpoint.every(1, path), "every: directory"),
        (lambda path: checkpoint.save_state(path, st), "save_state: folder"),
        (lambda path: checkpoint.load_state(path, st), "load_state: folder"),
    ):
        with pytest.raises(NotADirectoryError, match=rf"^checkpoint.{name} is .*file, a file, exp"):
            call(tmp_path / "file")


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^checkpoint.save: .*inner can not be written to: "):
        checkpoint.save(tmp_path / "file" / "inner" / "model.safetensors", {"w": tp.ones(2)})
