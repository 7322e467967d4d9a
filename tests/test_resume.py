"""A training that is stopped anywhere and resumed in a new process ends with the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import treepie as tp

from . import resumed
from .resumed import Stop, content, data, run

STEPS = 12  # 27 rows are 7 batches, which are 4 windows, three times over


@pytest.fixture(scope="module")
def whole():
    return content(*run(None))


def steps_of(directory):
    return sorted(p.name for p in Path(directory).iterdir())


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_in_a_new_process(tmp_path, whole, stop):
    command = [sys.executable, resumed.__file__, tmp_path / "run"]
    first = subprocess.run([*command, str(stop)], capture_output=True, text=True)
    assert first.returncode == 7, first.stderr
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.stdout.strip() == whole, second.stderr


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_at_every_step(tmp_path, whole, stop, steps):
    with pytest.raises(Stop):
        run(tmp_path, stop, steps=steps)
    seen = []
    assert content(*run(tmp_path, steps=steps, log=seen)) == whole
    # Saved after a report, and, at the end of an epoch, after the scores.
    assert seen[0][0] == 1 + (stop - 1) // steps * steps
    assert seen[-1][0] == STEPS


def test_stopped_again_and_again(tmp_path, whole):
    for stop in range(3, STEPS, 2):
        with pytest.raises(Stop):
            run(tmp_path, stop)
    assert content(*run(tmp_path)) == whole
    assert steps_of(tmp_path) == ["step-00000008", "step-00000010", "step-00000012"]


def test_a_run_that_has_ended_is_given_back_and_can_be_prolonged(tmp_path, whole):
    assert content(*run(tmp_path, epochs=2)) != whole
    seen = []
    run(tmp_path, epochs=2, log=seen)
    assert seen == []
    assert content(*run(tmp_path, epochs=3, log=seen)) == whole
    assert [step for step, _ in seen] == [9, 10, 11, 12]


def test_without_a_checkpoint_it_begins_and_without_resume_too(tmp_path, whole):
    assert content(*run(tmp_path / "none")) == whole
    seen = []
    assert content(*run(tmp_path / "none", resume=False, log=seen)) == whole
    assert seen[0][0] == 1
    # The checkpoints of the run before are still there, and the next resume is of the last run.
    assert len(steps_of(tmp_path / "none")) == 6
    with pytest.raises(Stop):
        run(tmp_path / "none", 3, resume=False)
    run(tmp_path / "none", log=(seen := []))
    assert seen[0][0] == 3


def test_the_one_before_a_damaged_checkpoint_gives_the_same_result(tmp_path, whole):
    with pytest.raises(Stop):
        run(tmp_path, 9)
    path = tmp_path / "step-00000008" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"step-00000008/tensors.safetensors is damaged"):
        assert content(*run(tmp_path)) == whole


def test_an_early_stop_is_a_checkpoint_and_goes_on(tmp_path):
    t = tp.Trainer(tp.layer.linear(3, 4), tp.optim.sgd(0.1))

    def fit(ending=None, **options):
        def report(step, loss, st):
            if step == ending:
                raise tp.EarlyStop

        train = data(27, tp.rng.key(1))
        st = t.fit(
            t.init(tp.rng.key(0)),
            train,
            loss=tp.loss.cross_entropy_sparse,
            report=report,
            epochs=2,
            **options,
        )
        return st.step, st.vars.params["weight"].numpy().tobytes()

    plan = tp.checkpoint.every(100, tmp_path)
    for ending in (5, 7):  # in the middle of an epoch, and at its end
        assert fit(ending, checkpoint=plan, resume=True)[0] == ending
    assert steps_of(tmp_path) == ["step-00000005", "step-00000007"]
    assert fit(checkpoint=plan, resume=True) == fit()


def test_the_key_of_the_run_is_the_checkpoints(tmp_path):
    t = tp.Trainer(tp.layer.sequential([tp.layer.linear(3, 4), tp.layer.dropout(0.5)]), tp.optim.sgd(0.1))

    def fit(key, epochs, **options):
        st = t.fit(
            t.init(tp.rng.key(0)), data(9, None), key, tp.loss.cross_entropy_sparse, epochs=epochs, **options
        )
        return st.vars.params[0]["weight"].tolist()

    plan = tp.checkpoint.every(1, tmp_path, keep=1)
    fit(tp.rng.key(5), 1, checkpoint=plan)
    assert len(steps_of(tmp_path)) == 1
    assert fit(tp.rng.key(6), 2, checkpoint=plan, resume=True) == fit(tp.rng.key(5), 2)


def test_losses_that_are_not_finite_are_kept(tmp_path):
    t, history = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.1)), tp.History()
    x = [np.float32(v) for v in (1, np.nan, 2)]

    def fit(count, history):
        train = tp.Data.of_array(x).map(lambda v: ([[v]], [[1.0]]))
        return t.fit(
            t.init(tp.rng.key(0)),
            train,
            loss=tp.loss.mse,
            on_nonfinite="skip",
            checkpoint=tp.checkpoint.every(1, tmp_path),
            resume=True,
            history=history,
            epochs=count,
        )

    with pytest.warns(RuntimeWarning, match="the loss is nan"):
        fit(1, tp.History())
    assert fit(1, history).step == 3
    assert [np.isnan(loss) for _, loss in history.steps] == [False, True, False]
    assert np.isnan(history.epochs[0]["loss"])


def test_a_disk_that_is_full_leaves_the_state_to_the_caller(tmp_path, monkeypatch):
    from treepie.checkpoint import files as storage

    def full(*_):
        raise OSError(28, "No space left on device")

    run(tmp_path, epochs=1)
    monkeypatch.setattr(storage, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run(tmp_path)
    assert caught.value.state.step == 6
    assert all(name.startswith("step-") for name in steps_of(tmp_path))


def test_errors(tmp_path):
    t = tp.Trainer(tp.layer.linear(3, 4), tp.optim.adam(0.1))

    def fit(trainer=t, n=9, directory=tmp_path, **options):
        options = {"checkpoint": tp.checkpoint.every(1, directory), "resume": True, **options}
        return trainer.fit(
            trainer.init(tp.rng.key(0)), data(n, None), loss=tp.loss.cross_entropy_sparse, **options
        )

    st = fit()
    with pytest.raises(ValueError, match=r"fit: length of data is 4, expected 3, as in .*/step-0000000"):
        fit(n=14)
    with pytest.raises(ValueError, match=r"fit: optimizer is sgd, expected adam, as in .*/step-0000000"):
        fit(tp.Trainer(tp.layer.linear(3, 4), tp.optim.sgd(0.1)))
    with pytest.raises(ValueError, match=r"'params.weight' in .* has shape \(3, 4\), expected \(3, 5\)"):
        fit(tp.Trainer(tp.layer.linear(3, 5), tp.optim.adam(0.1)))
    with pytest.raises(ValueError, match=r"fit: resume is True, expected checkpoint=tp.checkpoint.every"):
        fit(checkpoint=None)
    with pytest.raises(TypeError, match=r"fit: checkpoint is a str, expected tp.checkpoint.every"):
        fit(checkpoint="folder")
    tp.checkpoint.save_state(tmp_path / "by hand", st)
    with pytest.raises(ValueError, match="was written by save_state, without a position in the data"):
        fit(directory=tmp_path / "by hand")


def test_seek():
    make = lambda: tp.Data.of_array(list(range(10))).shuffle(tp.rng.key(0)).batch(3)
    for d in (make(), make().prefetch(2)):
        passes = []
        for _ in range(3):
            passes.append(d.to_list())
            d.reset()
        assert d.pass_number == 3
        d.seek(1, 2)
        assert (d.pass_number, d.position) == (1, 2)
        assert d.to_list() == passes[1][2:]
        d.seek(0)
        assert d.to_list() == passes[0]
        d.seek(2, 4)
        assert d.to_list() == []
    for place, match in (
        ((-1, 0), "pass_number is -1"),
        ((0, -1), "position is -1"),
        ((0, 5), "is 5, expected"),
    ):
        with pytest.raises(ValueError, match=f"Data.seek: .*{match}"):
            d.seek(*place)
    with pytest.raises(TypeError, match=r"Data.seek: position is 0.5, expected an int"):
        d.seek(0, 0.5)


def test_what_is_stored_can_be_read_without_treepie(tmp_path):
    """JSON and safetensors, and names that say what is what."""
    import safetensors.numpy

    run(tmp_path, epochs=1)
    folder = tmp_path / "step-00000004"
    notes = json.loads((folder / "training.json").read_text())
    assert (notes["step"], notes["count"], notes["fit"]["position"]) == (4, 4, 7)
    tensors = safetensors.numpy.load_file(folder / "tensors.safetensors")
    assert {"params.0.weight", "state.1.seen", "moments.1.3.bias", "history.losses"} <= tensors.keys()
