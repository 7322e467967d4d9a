"""Checkpoints: trees of tensors in safetensors files, and all of training in folders.

A folder has one subfolder for each checkpoint, `step-00000010`, with `tensors.safetensors`, `training.json`
and `manifest.json`, which has the size and SHA-256 of the two others. Writes are atomic, and an older
checkpoint is removed only after the newer one was verified.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree, tensor
from treepie.autodiff.arguments import as_tensor, described as shown, integer
from treepie.kernels.frames import warn

from ..errors import did_you_mean
from ..layer import Vars
from ..optim.opt_state import described
from ..train.preemption import check_signals
from ..train.state import TrainState
from . import files as storage

Tree = Any
PathLike = str | os.PathLike[str]

_TENSORS, _TRAINING, _MANIFEST = "tensors.safetensors", "training.json", "manifest.json"
_FORMAT = 1

#: The run number of checkpoints that `save_state` writes.
_NO_RUN = 0


# ---- trees
def save(path: PathLike, tree: Tree, dtype: str | None = None) -> None:
    """Write the tensors of a tree into a safetensors file, named by their paths: "layers.0.weight".

    path: the file; missing folders are created. The write is atomic: a crash leaves the old file or the new.
    tree: nested containers of tensors. A flat dict of tensors may have any names, such as those that `load`
        and `hub.load_weights` return.
    dtype: "bfloat16" (tp.bfloat16) or "float16" to round floats, to nearest even, and halve the file; `load`
        returns them in the dtypes of `like`. None for their own.

    Raises OSError if the file can not be written, ValueError for another dtype.

    >>> import tempfile, treepie as tp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tp.checkpoint.save(folder + "/model.safetensors", {"layers": [{"weight": tp.ones(2)}]})
    ...     tp.checkpoint.load(folder + "/model.safetensors")["layers.0.weight"].tolist()
    [1.0, 1.0]
    """
    target = path_of("checkpoint.save", path)
    if target.is_dir():
        raise IsADirectoryError(
            f"checkpoint.save: {target} is a folder, expected a file: {target / 'model.safetensors'}"
        )
    if dtype is not None and dtype not in storage.SMALLER:
        names = " or ".join(map(repr, storage.SMALLER))
        raise ValueError(f"checkpoint.save: dtype is {dtype!r}, expected {names}, or None")
    with storage.temporary_folder("checkpoint.save", target) as folder:
        source = folder / target.name
        storage.write("checkpoint.save", source, _arrays(tree), dtype)
        storage.replace(source, target)


def load(path: PathLike, like: Tree = None) -> Tree:
    """Return the tensors of a safetensors file, in the structure and the dtypes of `like`.

    like: a tree of tensors; None returns a dict of all tensors by their names. float16 and bfloat16 are
        read as float32. Names that `like` does not have are ignored.

    Raises FileNotFoundError, KeyError for a name that the file does not have, ValueError for a shape that
    differs and for a damaged file, TypeError for floats where `like` has integers; each names the key and
    the file.

    >>> import tempfile, treepie as tp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tp.checkpoint.save(folder + "/model.safetensors", {"w": tp.ones(2)})
    ...     params = tp.checkpoint.load(folder + "/model.safetensors", like={"w": tp.zeros(2, tp.float64)})
    >>> params["w"].dtype.name
    'float64'
    """
    file = path_of("checkpoint.load", path)
    arrays = storage.read("checkpoint.load", file)
    if like is None:
        return {name: tensor(x) for name, x in arrays.items()}
    return _filled("checkpoint.load", file, like, arrays)


def path_of(function: str, path: PathLike, argument: str = "path") -> Path:
    """Return a path, or raise TypeError. argument: its name in the message."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise TypeError(f"{function}: {argument} is {shown(path)}, expected a path")
    return Path(path).expanduser()


def folder_of(function: str, folder: PathLike, argument: str) -> Path:
    """Return the path of a folder, which need not exist, or raise TypeError or NotADirectoryError."""
    path = path_of(function, folder, argument)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{function}: {argument} is {path}, a file, expected a folder")
    return path


def _arrays(tree: Tree) -> storage.Arrays:
    if isinstance(tree, Vars | TrainState):
        part = (
            "vars.params" if isinstance(tree, Vars) else "st.vars.params, or save_state for all of training"
        )
        raise TypeError(
            f"checkpoint.save: tree is a {type(tree).__name__}, expected a tree of tensors: {part}"
        )
    flat = isinstance(tree, dict) and all(isinstance(x, Tensor) for x in tree.values())
    rows = tree.items() if flat and all(isinstance(k, str) for k in tree) else ptree.flatten_with_paths(tree)
    return {path: as_tensor(x).numpy() for path, x in rows}


def _filled(function: str, file: Path, like: Tree, arrays: Mapping[str, Any]) -> Tree:
    """Return a tree of the structure and dtypes of `like`, with a file's arrays."""
    paths = iter([path for path, _ in ptree.flatten_with_paths(like)])

    def fill(leaf: Any) -> Tensor:
        path, expected = next(paths), as_tensor(leaf)
        if path not in arrays:
            hint = did_you_mean(path, arrays)
            raise KeyError(f"{function}: {file} has no {path!r}{hint and ', '}{hint}")
        x, dtype = arrays[path], expected.dtype
        if x.shape != expected.shape:
            raise ValueError(
                f"{function}: {path!r} in {file} has shape {x.shape}, expected {expected.shape} as in like"
            )
        if not np.can_cast(x.dtype, dtype, "same_kind"):
            raise TypeError(
                f"{function}: {path!r} in {file} is {x.dtype.name}, expected what the dtype in "
                f"like can hold, {dtype.name}"
            )
        try:
            return tensor(x, dtype)
        except ValueError:
            message = f"{function}: {path!r} in {file} has numbers beyond {dtype.name}'s range"
            raise ValueError(message) from None

    return ptree.map(fill, like)


# ---- all of training
@dataclass(frozen=True)
class Every:
    """The interval, folder, number and signals of checkpoints of `Trainer.fit`; `every` constructs it.

    >>> import treepie as tp
    >>> tp.checkpoint.every(100, "runs/digits").keep
    3
    """

    steps: int
    directory: Path
    keep: int
    on_signals: tuple[str, ...]


def every(
    steps: int,
    directory: PathLike,
    keep: int = 3,
    on_signals: Iterable[str] = ("SIGTERM", "SIGUSR1"),
) -> Every:
    """Return the plan for `Trainer.fit(checkpoint=...)`: a checkpoint every `steps` steps, and at the end.

    directory: the folder; it need not exist.
    keep: how many checkpoints of the run are kept, the newest ones; those of other runs are never removed.
    on_signals: signals that preempt a `fit` of the main thread: at the end of the step, on all ranks, it
        writes a checkpoint and raises `tp.Preempted`, with exit status 85. A handler of the program's own is
        called too. () leaves all signals alone.

    Raises ValueError for steps or keep below 1, and for a name that is no such signal.

    >>> import treepie as tp
    >>> tp.checkpoint.every(100, "runs/digits", keep=1).steps
    100
    """
    for argument, value in (("steps", steps), ("keep", keep)):
        integer("checkpoint.every", argument, value, least=1)
    signals = check_signals("checkpoint.every", on_signals)
    return Every(int(steps), folder_of("checkpoint.every", directory, "directory"), int(keep), signals)


def save_state(folder: PathLike, st: TrainState) -> None:
    """Write a training state into a folder: parameters, the model's state, moments, counts.

    The state that was saved there before is removed after this one is verified. Raises TypeError for other
    than a state of a `Trainer`, OSError if it can not be written.

    >>> import tempfile, treepie as tp
    >>> trainer = tp.Trainer(tp.layer.linear(3, 2), tp.optim.adam(1e-3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tp.checkpoint.save_state(folder, trainer.init(tp.rng.key(0)))
    ...     tp.checkpoint.load_state(folder, like=trainer.init(tp.rng.key(1))).step
    0
    """
    _check_state("checkpoint.save_state", "st", st)
    Store("checkpoint.save_state", folder).write(st, {}, {}, keep=1, run=_NO_RUN)


def load_state(folder: PathLike, like: TrainState) -> TrainState:
    """Return the state that was last written into a folder, by `save_state` or by `Trainer.fit`.

    like: a state of the same model and optimizer, such as `trainer.init(key)`.

    If the last checkpoint is damaged, the one before it is read, with a warning. Raises FileNotFoundError if
    there is none, ValueError if all are damaged, and the errors of `load`.

    >>> import tempfile, treepie as tp
    >>> trainer = tp.Trainer(tp.layer.linear(3, 2), tp.optim.adam(1e-3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tp.checkpoint.save_state(folder, trainer.init(tp.rng.key(0)))
    ...     tp.checkpoint.load_state(folder, like=trainer.init(tp.rng.key(1))).step
    0
    """
    _check_state("checkpoint.load_state", "like", like)
    store = Store("checkpoint.load_state", folder)
    entry = store.newest()
    if entry is None:
        raise FileNotFoundError(f"{store.function}: {store.folder} has no checkpoint")
    return entry.state(like, entry.arrays())


def _check_state(function: str, argument: str, st: Any) -> None:
    if not isinstance(st, TrainState):
        raise TypeError(f"{function}: {argument} is a {type(st).__name__}, expected a state of tp.Trainer")


class Store:
    """A folder of checkpoints, each with a serial number in the order of writing.

    function: the public function, for error messages.  folder: need not exist.
    """

    def __init__(self, function: str, folder: PathLike) -> None:
        self.function, self.folder = function, folder_of(function, folder, "folder")

    def write(
        self, st: TrainState, notes: Mapping[str, Any], tensors: Tree, keep: int, run: int | None = None
    ) -> int:
        """Write a checkpoint, then keep only the last `keep` of its run; return the run's number.

        notes: further values, for JSON.  tensors: further tensors, a dict.  run: None for a new one.
        """
        serials = [entry.serial for entry in self._entries()]
        serial = 1 + max(serials, default=0) + serials.count(0)  # unreadable ones may be the last
        run = serial if run is None else run
        count, moments = st.opt_state.to_trees()
        content = {"params": st.vars.params, "state": st.vars.state, "moments": moments, **tensors}
        training = {"step": st.step, "count": count, "moments": len(moments), **notes}
        training["optimizer"] = st.opt_state.optimizer
        target = self._free_name(st.step)
        with storage.temporary_folder(self.function, target) as folder:
            source = folder / target.name
            source.mkdir()
            storage.write(self.function, source / _TENSORS, _arrays(content))
            (source / _TRAINING).write_text(json.dumps(training), encoding="utf-8")
            files = {name: _digest(source / name) for name in (_TENSORS, _TRAINING)}
            manifest = {"format": _FORMAT, "serial": serial, "run": run, "files": files}
            (source / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            storage.replace(source, target)
            Entry(self.function, target).check()
            mine = sorted((e for e in self._entries() if e.run == run), key=lambda e: e.serial)
            for old in mine[:-keep]:
                os.rename(old.path, folder / old.path.name)  # removed with the temporary folder
        return run

    def newest(self) -> Entry | None:
        """Return the last undamaged checkpoint, with a warning for each damaged one after it."""
        # One without a readable manifest may be the newest, and gets a warning too.
        single = (self.folder / _MANIFEST).is_file()  # the folder is a checkpoint itself
        unsorted = [Entry(self.function, self.folder)] if single else self._entries()
        entries = sorted(unsorted, key=lambda e: e.serial or np.inf, reverse=True)
        lines: list[str] = []
        for entry in entries:
            damage = entry.damage()
            if not damage:
                return entry
            lines += damage
            message = f"{self.function}: {'; '.join(damage)}; trying the one before it"
            warn(message)
        if entries:
            listed = "".join(f"\n  {line}" for line in lines)
            raise ValueError(f"{self.function}: all checkpoints in {self.folder} are damaged:{listed}")
        return None

    def _entries(self) -> list[Entry]:
        if not self.folder.is_dir():
            return []
        paths = [p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}(-\d+)?", p.name)]
        return [Entry(self.function, path) for path in paths]

    def _free_name(self, step: int) -> Path:
        """Return `step-00000010`, or `step-00000010-2` if another run has a checkpoint of that step."""
        name, k = self.folder / f"step-{step:08d}", 2
        while name.exists():
            name, k = self.folder / f"step-{step:08d}-{k}", k + 1
        return name


class Entry:
    """A checkpoint in a folder; its serial number is 0 if the manifest can not be read."""

    def __init__(self, function: str, path: Path) -> None:
        """Read the manifest."""
        self.function, self.path = function, path
        self.serial, self.run, self.format = 0, -1, 0
        self.files: dict[str, Any] = {}
        self.reason = "another content"
        try:
            manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
            self.serial, self.run, self.format = (int(manifest[k]) for k in ("serial", "run", "format"))
            self.files = dict(manifest["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.reason = repr(error)

    def check(self) -> None:
        """Raise Damaged unless every file has the size and the SHA-256 of the manifest."""
        if damage := self.damage():
            raise storage.Damaged(f"{self.function}: {'; '.join(damage)}")

    def damage(self) -> list[str]:
        """Return a line for each file that has not the size and the SHA-256 of the manifest."""
        if self.format > _FORMAT:
            raise RuntimeError(
                f"{self.function}: {self.path} has format {self.format}, expected {_FORMAT}: a later "
                "version of treepie wrote it"
            )
        if set(self.files) != {_TENSORS, _TRAINING}:
            return [f"{self.path / _MANIFEST} is damaged ({self.reason})"]
        lines = []
        for name, expected in self.files.items():
            file = self.path / name
            try:
                actual = _digest(file)
            except OSError as error:
                lines.append(f"{file} can not be read ({error})")
                continue
            if actual != expected:
                lines.append(f"{file} is damaged: {actual}, expected {expected}")
        return lines

    def training(self) -> dict[str, Any]:
        """Return the content of its JSON file."""
        training: dict[str, Any] = json.loads((self.path / _TRAINING).read_text(encoding="utf-8"))
        return training

    def arrays(self) -> storage.Arrays:
        """Return its tensors by name."""
        return storage.read(self.function, self.path / _TENSORS)

    def state(self, like: TrainState, arrays: storage.Arrays) -> TrainState:
        """Return the training state of its arrays, in the structure and dtypes of `like`."""
        training, file = self.training(), self.path / _TENSORS
        moments, optimizer = like.opt_state.moments, like.opt_state.optimizer
        # Earlier versions wrote the name in `fit` alone.
        name = training.get("optimizer") or training.get("fit", {}).get("optimizer", "")
        if training["moments"] != len(moments) or (name and optimizer and name != optimizer):
            raise ValueError(
                f"{self.function}: {file} is a state of {described(name, training['moments'])}, expected one "
                f"of {described(optimizer, len(moments))}, as in like"
            )
        trees = {"params": like.vars.params, "state": like.vars.state, "moments": list(moments)}
        tree = _filled(self.function, file, trees, arrays)
        vars = like.vars.with_params(tree["params"]).with_state(tree["state"])
        opt_state = like.opt_state.with_trees(training["count"], tree["moments"])
        return dataclasses.replace(like, vars=vars, opt_state=opt_state, step=training["step"])


def _digest(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}
