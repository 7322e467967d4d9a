"""Checkpoints: trees of tensors in safetensors files, and all of training in folders.

A folder has one subfolder a checkpoint, `step-00000010`, with `tensors.safetensors`, `training.json` and
`manifest.json`, which has the size and SHA-256 of the two others. Files and folders appear whole or not at
all, and an older checkpoint goes only after a newer one was read again.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree, tensor
from treepie.autodiff.arguments import as_tensor, integer

from ..train.state import TrainState
from . import files as storage

Tree = Any
PathLike = str | os.PathLike[str]

_TENSORS, _TRAINING, _MANIFEST = "tensors.safetensors", "training.json", "manifest.json"
_FORMAT = 1

#: The run that checkpoints of `save_state` belong to.
_BY_HAND = 0


# ---- trees
def save(path: PathLike, tree: Tree) -> None:
    """Write the tensors of a tree into a safetensors file, by their paths: "layers.0.weight".

    A dict of tensors alone may have any names, such as those that `load` and `hub.load_weights` give. A crash
    leaves the old file or the new one. Missing folders are made.
    """
    target = _path("checkpoint.save", path)
    with storage.workshop(target) as folder:
        made = folder / target.name
        storage.write("checkpoint.save", made, _arrays(tree))
        storage.put(made, target)


def load(path: PathLike, like: Tree = None) -> Tree:
    """Return the tensors of a safetensors file, in the structure and the dtypes of `like`.

    like: a tree of tensors; without one, a dict of all tensors by their names. float16 and bfloat16 are
        read as float32. Names that `like` does not have are left out.

    Raises KeyError for a name that the file does not have, ValueError for a shape that differs and for a
    damaged file, TypeError for floats where `like` has integers; each names the key and the file.
    """
    file = _path("checkpoint.load", path)
    arrays = storage.read("checkpoint.load", file)
    if like is None:
        return {name: tensor(x) for name, x in arrays.items()}
    return _filled("checkpoint.load", file, like, arrays)


def _path(function: str, path: PathLike) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise TypeError(f"{function}: path is {path!r}, expected a path")
    return Path(path).expanduser()


def _arrays(tree: Tree) -> storage.Arrays:
    flat = isinstance(tree, dict) and all(isinstance(x, Tensor) for x in tree.values())
    rows = tree.items() if flat and all(isinstance(k, str) for k in tree) else ptree.flatten_with_paths(tree)
    return {path: as_tensor(x).numpy() for path, x in rows}


def _filled(function: str, file: Path, like: Tree, arrays: Mapping[str, Any]) -> Tree:
    """Return a tree like another, with a file's arrays."""
    paths = iter([path for path, _ in ptree.flatten_with_paths(like)])

    def fill(leaf: Any) -> Tensor:
        path, want = next(paths), as_tensor(leaf)
        if path not in arrays:
            near = difflib.get_close_matches(path, arrays, 1)
            hint = f" (it has {near[0]!r})" if near else ""
            raise KeyError(f"{function}: {file} has no {path!r}{hint}")
        found = arrays[path]
        if found.shape != want.shape:
            raise ValueError(
                f"{function}: {path!r} in {file} has shape {found.shape}, expected {want.shape} as in like"
            )
        if not np.can_cast(found.dtype, want.dtype, "same_kind"):
            raise TypeError(
                f"{function}: {path!r} in {file} is {found.dtype.name}, expected what the dtype in "
                f"like can hold, {want.dtype.name}"
            )
        made = tensor(found, want.dtype)
        if want.dtype.kind == "i" and (made.numpy() != found).any():
            raise ValueError(f"{function}: {path!r} in {file} has numbers beyond {want.dtype.name}'s range")
        return made

    return ptree.map(fill, like)


# ---- all of training
@dataclass(frozen=True)
class Every:
    """When `Trainer.fit` writes checkpoints, where to, and how many of its own it keeps; made by `every`."""

    steps: int
    directory: Path
    keep: int


def every(steps: int, directory: PathLike, keep: int = 3) -> Every:
    """Have `Trainer.fit(checkpoint=...)` write a checkpoint every so many steps, and at its end.

    keep: how many of the run are kept, the newest ones; those of other runs are never removed.
    """
    for argument, value in (("steps", steps), ("keep", keep)):
        if integer("checkpoint.every", argument, value) < 1:
            raise ValueError(f"checkpoint.every: {argument} is {value}, expected at least 1")
    return Every(int(steps), _path("checkpoint.every", directory), int(keep))


def save_state(folder: PathLike, st: TrainState) -> None:
    """Write a training state into a folder: parameters, the model's state, moments, counts.

    The state that was saved there before is removed once this one is whole.
    """
    _check_state("checkpoint.save_state", "st", st)
    Store("checkpoint.save_state", folder).write(st, {}, {}, keep=1, run=_BY_HAND)


def load_state(folder: PathLike, like: TrainState) -> TrainState:
    """Return the state that was last written into a folder, by `save_state` or by `Trainer.fit`.

    like: a state of the same model and optimizer, such as `trainer.init(key)`. Where the last checkpoint is
        damaged, the one before it is read, with a warning.

    Raises FileNotFoundError where there is none, ValueError where all are damaged, and what `load` raises.
    """
    _check_state("checkpoint.load_state", "like", like)
    store = Store("checkpoint.load_state", folder)
    found = store.newest()
    if found is None:
        raise FileNotFoundError(f"{store.function}: {store.folder} has no checkpoint")
    return found.state(like, found.arrays())


def _check_state(function: str, argument: str, st: Any) -> None:
    if not isinstance(st, TrainState):
        raise TypeError(f"{function}: {argument} is a {type(st).__name__}, expected a state of tp.Trainer")


class Store:
    """A folder of checkpoints, each with a number that says in which order they were written."""

    def __init__(self, function: str, folder: PathLike) -> None:
        """Take the name of the calling function, for messages, and the folder, which need not exist."""
        self.function, self.folder = function, _path(function, folder)

    def write(
        self, st: TrainState, notes: Mapping[str, Any], tensors: Tree, keep: int, run: int | None = None
    ) -> int:
        """Write a checkpoint, then remove all but the last `keep` of its run; return the run's number.

        notes: what JSON can hold.  tensors: more tensors, a dict.  run: None for a new one.
        """
        serials = [entry.serial for entry in self._entries()]
        serial = 1 + max(serials, default=0) + serials.count(0)  # those unreadable may come last
        run = serial if run is None else run
        count, moments = st.opt_state.to_trees()
        content = {"params": st.vars.params, "state": st.vars.state, "moments": moments, **tensors}
        training = {"step": st.step, "count": count, "moments": len(moments), **notes}
        target = self._free_name(st.step)
        with storage.workshop(target) as folder:
            made = folder / target.name
            made.mkdir()
            storage.write(self.function, made / _TENSORS, _arrays(content))
            (made / _TRAINING).write_text(json.dumps(training), encoding="utf-8")
            files = {name: _digest(made / name) for name in (_TENSORS, _TRAINING)}
            manifest = {"format": _FORMAT, "serial": serial, "run": run, "files": files}
            (made / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            storage.put(made, target)
            Entry(self.function, target).check()
            mine = sorted((e for e in self._entries() if e.run == run), key=lambda e: e.serial)
            for old in mine[:-keep]:
                os.rename(old.path, folder / old.path.name)  # removed with the workshop
        return run

    def newest(self) -> Entry | None:
        """Return the last checkpoint that is whole, with a warning for each one after it that is not."""
        # One without a readable manifest may be the newest: the warning is due.
        itself = (self.folder / _MANIFEST).is_file()  # the folder of one checkpoint was given
        found = [Entry(self.function, self.folder)] if itself else self._entries()
        entries = sorted(found, key=lambda e: e.serial or np.inf, reverse=True)
        for entry in entries:
            try:
                entry.check()
            except storage.Damaged as error:
                warnings.warn(f"{error}; trying the one before it", RuntimeWarning, stacklevel=3)
            else:
                return entry
        if entries:
            raise ValueError(f"{self.function}: all checkpoints in {self.folder} are damaged")
        return None

    def _entries(self) -> list[Entry]:
        if not self.folder.is_dir():
            return []
        found = [p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}(-\d+)?", p.name)]
        return [Entry(self.function, path) for path in found]

    def _free_name(self, step: int) -> Path:
        """Return `step-00000010`, or `step-00000010-2` where another run has been at that step."""
        name, k = self.folder / f"step-{step:08d}", 2
        while name.exists():
            name, k = self.folder / f"step-{step:08d}-{k}", k + 1
        return name


class Entry:
    """A checkpoint in a folder; serial is 0 where its manifest can not be read."""

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
        if self.format > _FORMAT:
            raise RuntimeError(
                f"{self.function}: {self.path} has format {self.format}, expected {_FORMAT}: a later "
                "version of treepie wrote it"
            )
        if set(self.files) != {_TENSORS, _TRAINING}:
            raise storage.Damaged(f"{self.function}: {self.path / _MANIFEST} is damaged ({self.reason})")
        for name, want in self.files.items():
            file = self.path / name
            try:
                found = _digest(file)
            except OSError as error:
                raise storage.Damaged(f"{self.function}: {file} can not be read ({error})") from error
            if found != want:
                raise storage.Damaged(f"{self.function}: {file} is damaged: {found}, expected {want}")

    def training(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        made: dict[str, Any] = json.loads((self.path / _TRAINING).read_text(encoding="utf-8"))
        return made

    def arrays(self) -> storage.Arrays:
        """Return its tensors by name."""
        return storage.read(self.function, self.path / _TENSORS)

    def state(self, like: TrainState, arrays: storage.Arrays) -> TrainState:
        """Return the training state in its arrays, in the structure and dtypes of another."""
        training, file = self.training(), self.path / _TENSORS
        moments = like.opt_state.moments
        if training["moments"] != len(moments):
            raise ValueError(
                f"{self.function}: {file} has {training['moments']} moments, expected {len(moments)}: it was "
                "written with another optimizer"
            )
        wanted = {"params": like.vars.params, "state": like.vars.state, "moments": list(moments)}
        tree = _filled(self.function, file, wanted, arrays)
        vars = like.vars.with_params(tree["params"]).with_state(tree["state"])
        opt_state = like.opt_state.with_trees(training["count"], tree["moments"])
        return dataclasses.replace(like, vars=vars, opt_state=opt_state, step=training["step"])


def _digest(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}
