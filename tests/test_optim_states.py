"""A state, or a checkpoint, of another optimizer is refused by name."""

import json
import pickle
import shutil

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(0)
PARAMS = {"w": tp.ones((2, 3)), "b": tp.ones(3)}
OPTIMIZERS = {
    "sgd": tp.optim.sgd(0.1),
    "momentum": tp.optim.sgd(0.1, momentum=0.9),
    "adam": tp.optim.adam(0.1),
    "adamw": tp.optim.adamw(0.1),
    "rmsprop": tp.optim.rmsprop(0.1),
    "rmsprop with momentum": tp.optim.rmsprop(0.1, momentum=0.9),
    "adagrad": tp.optim.adagrad(0.1),
}
PAIRS = [(a, b) for a in OPTIMIZERS for b in OPTIMIZERS if a != b]


def trainer(optimizer):
    return tp.Trainer(tp.layer.linear(3, 2), optimizer)


def step(t, st):
    return t.step(st, np.ones((4, 3), "f4"), loss=lambda out: (out**2).mean())[1]


def fit(t, st, **options):
    data = tp.Data.prepare((np.ones((6, 3), "f4"), np.ones((6, 2), "f4")), batch_size=1)
    return t.fit(st, data, loss=tp.loss.mse, **options)


def message(function, a, b):
    first, second = (f"{OPTIMIZERS[k].name} with {OPTIMIZERS[k].moments} moment" for k in (a, b))
    return rf"^{function}: the state is of {first}s?, expected one of {second}s?$"


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_step_and_update_refuse_it(a, b):
    state, opt = OPTIMIZERS[a].init(PARAMS), OPTIMIZERS[b]
    opt.update(opt.init(PARAMS), PARAMS, PARAMS)  # its own state first
    assert state.optimizer == OPTIMIZERS[a].name
    for function in ("step", "update"):
        with pytest.raises(ValueError, match=message(f"{opt.name}.{function}", a, b)):
            getattr(opt, function)(state, PARAMS, PARAMS)
    # Also after the other one has accepted it, and in a trace.
    _, state = OPTIMIZERS[a].update(state, PARAMS, PARAMS)
    with pytest.raises(ValueError, match=message(f"{opt.name}.update", a, b)):
        tp.jit(lambda p, s: opt.update(s, p, p))(PARAMS, state)


@pytest.mark.parametrize(("a", "b"), [("adam", "rmsprop"), ("momentum", "adagrad"), ("adam", "adamw")])
def test_a_trainer_refuses_it(a, b):
    mine, other = trainer(OPTIMIZERS[a]), trainer(OPTIMIZERS[b])
    fresh = mine.init(KEY)
    for st in (fresh, step(mine, fresh), pickle.loads(pickle.dumps(fresh)), fit(mine, fresh)):
        with pytest.raises(ValueError, match=message("Trainer.step", a, b)):
            step(other, st)
        with pytest.raises(ValueError, match=message("Trainer.fit", a, b)):
            fit(other, st)
        other.predict(st, np.ones((1, 3), "f4"))  # which needs no optimizer
        step(mine, st)


@pytest.mark.parametrize(("a", "b"), [("adam", "rmsprop"), ("momentum", "adagrad"), ("adam", "adamw")])
def test_a_checkpoint_of_it_is_refused(tmp_path, a, b):
    mine, other = trainer(OPTIMIZERS[a]), trainer(OPTIMIZERS[b])
    tp.checkpoint.save_state(tmp_path / "one", step(mine, mine.init(KEY)))
    fit(mine, mine.init(KEY), checkpoint=tp.checkpoint.every(2, tmp_path / "run"))
    names = [f"{OPTIMIZERS[k].name} with {OPTIMIZERS[k].moments} moment" for k in (a, b)]
    for folder in ("one", "run"):
        with pytest.raises(ValueError, match=rf"is a state of {names[0]}s?, expected one of {names[1]}"):
            tp.checkpoint.load_state(tmp_path / folder, other.init(KEY))
    with pytest.raises(ValueError, match=f"Trainer.fit: optimizer is {OPTIMIZERS[b].name}, expected"):
        fit(other, other.init(KEY), checkpoint=tp.checkpoint.every(2, tmp_path / "run"), resume=True)


def unnamed(tmp_path, st):
    """Write a checkpoint as earlier versions did, without the optimizer's name."""
    from treepie.checkpoint import checkpoint as module

    tp.checkpoint.save_state(tmp_path, st)
    (folder,) = tmp_path.iterdir()
    training = json.loads((folder / "training.json").read_text())
    assert training.pop("optimizer") == "adam"
    (folder / "training.json").write_text(json.dumps(training))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["training.json"] = module._digest(folder / "training.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_checkpoints_without_a_name_load_by_their_structure(tmp_path):
    t = trainer(OPTIMIZERS["adam"])
    st = step(t, t.init(KEY))
    unnamed(tmp_path, st)
    loaded = tp.checkpoint.load_state(tmp_path, t.init(KEY))
    assert loaded.opt_state.optimizer == "adam"
    np.testing.assert_array_equal(step(t, loaded).vars.params["weight"], step(t, st).vars.params["weight"])
    with pytest.raises(ValueError, match="of an optimizer with 2 moments, expected one of sgd with 0"):
        tp.checkpoint.load_state(tmp_path, trainer(OPTIMIZERS["sgd"]).init(KEY))


def test_pickles_without_a_name_are_checked_by_their_structure():
    state = OPTIMIZERS["adam"].init(PARAMS)
    del state.layout.optimizer
    state = pickle.loads(pickle.dumps(state))
    assert state.optimizer == ""
    OPTIMIZERS["adamw"].update(state, PARAMS, PARAMS)
    with pytest.raises(ValueError, match="of an optimizer with 2 moments, expected one of sgd with 0"):
        OPTIMIZERS["sgd"].update(state, PARAMS, PARAMS)


def test_another_mask_is_refused_and_converted():
    first = tp.optim.adamw(0.1, mask={"w": True, "b": False})
    other = tp.optim.adamw(0.1, mask=lambda params: {"w": False, "b": False})
    state = first.init(PARAMS)
    first.update(state, PARAMS, PARAMS)
    for opt, path, here in ((other, "w", False), (OPTIMIZERS["adamw"], "b", True)):
        with pytest.raises(ValueError, match=rf"update: .* that is {not here} for '{path}', expected {here}"):
            opt.update(state, PARAMS, PARAMS)
        converted = opt.state_of_trees(*state.to_trees())
        new, _ = opt.update(converted, PARAMS, PARAMS)
        fresh, _ = opt.update(opt.init(PARAMS), PARAMS, PARAMS)
        np.testing.assert_array_equal(new["w"], fresh["w"])
    first.update(pickle.loads(pickle.dumps(state)), PARAMS, PARAMS)


def test_nesterov_goes_on_from_momentum():
    """They differ in the formula, not in the state."""
    state = OPTIMIZERS["momentum"].init(PARAMS)
    tp.optim.sgd(0.1, momentum=0.5, nesterov=True).update(state, PARAMS, PARAMS)


def test_all_damaged_files_are_listed(tmp_path):
    t = trainer(OPTIMIZERS["adam"])
    fit(t, t.init(KEY), checkpoint=tp.checkpoint.every(2, tmp_path))
    first, second, third = sorted(tmp_path.iterdir())
    for file in ("tensors.safetensors", "training.json"):
        (first / file).write_bytes((first / file).read_bytes()[:-1])
    (second / "tensors.safetensors").unlink()
    (third / "manifest.json").write_text("{")
    with (
        pytest.warns(RuntimeWarning, match="trying the one before"),
        pytest.raises(ValueError, match="damaged") as caught,
    ):
        tp.checkpoint.load_state(tmp_path, t.init(KEY))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"checkpoint.load_state: all checkpoints in {tmp_path} are damaged:"
    expected = [
        f"{third / 'manifest.json'} is damaged (JSONDecodeError",
        f"{second / 'tensors.safetensors'} can not be read ([Errno 2]",
        f"{first / 'tensors.safetensors'} is damaged: {{'bytes'",
        f"{first / 'training.json'} is damaged: {{'bytes'",
    ]
    assert len(lines) == 5
    for line, begin in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"  {begin}")
    shutil.rmtree(third)
