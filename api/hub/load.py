"""Weights and configurations in folders, and of models on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from treepie.autodiff import Tensor, tensor

from ..checkpoint import files as storage

_WEIGHTS, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

#: A file's name -> its path, or None if there is no such file.
_Find = Callable[[str], Path | None]


def load_weights(
    model: str | os.PathLike[str], offline: bool = False, revision: str | None = None
) -> dict[str, Tensor]:
    """Return the weights of a model by name: those of `model.safetensors`, or of its shards together.

    model: a folder, or "org/model" on the Hugging Face hub, which needs `pip install "treepie[hub]"`; files
        are stored in huggingface_hub's cache, and HF_TOKEN gives access to private models.
    offline: read only the cache, never the network.
    revision: a branch, tag or commit on the hub.

    float16 and bfloat16 become float32, which represents them exactly, integers smaller than int32 become
    int32; other dtypes are kept. No pickle is read: `pytorch_model.bin` is ignored.

    Raises FileNotFoundError for a missing file, KeyError and ValueError for a damaged one, ImportError
    without huggingface_hub.

    >>> import tempfile, treepie as tp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tp.checkpoint.save(folder + "/model.safetensors", {"lm_head.weight": tp.ones(2)})
    ...     tp.hub.load_weights(folder)["lm_head.weight"].tolist()
    [1.0, 1.0]
    """
    function = "hub.load_weights"
    find = _finder(function, model, offline, revision)
    single = find(_WEIGHTS)
    if single is not None:
        return {name: tensor(x) for name, x in storage.read(function, single).items()}
    index = find(_INDEX)
    if index is None:
        raise _missing(function, model, f"{_WEIGHTS} and no {_INDEX}, expected either", offline)
    weight_map = _json(function, index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_is_file_name, weight_map.values())):
        raise ValueError(f"{function}: {index} has no 'weight_map' from names to files beside it")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        file = find(shard)
        if file is None:
            raise FileNotFoundError(f"{function}: {model} has no {shard}, which {index.name} names")
        arrays = storage.read(function, file)
        for name in (n for n, s in weight_map.items() if s == shard):
            if name not in arrays:
                raise KeyError(f"{function}: {file} has no {name!r}, which {index.name} says it has")
            weights[name] = tensor(arrays[name])
    return weights


def load_config(
    model: str | os.PathLike[str], offline: bool = False, revision: str | None = None
) -> dict[str, Any]:
    """Return the `config.json` of a model as a dict; arguments and errors as for `load_weights`.

    >>> import pathlib, tempfile, treepie as tp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "config.json").write_text('{"hidden_size": 768}')
    ...     tp.hub.load_config(folder)
    {'hidden_size': 768}
    """
    file = _finder("hub.load_config", model, offline, revision)(_CONFIG)
    if file is None:
        raise _missing("hub.load_config", model, _CONFIG, offline)
    return _json("hub.load_config", file)


def _missing(function: str, model: Any, what: str, offline: bool) -> FileNotFoundError:
    """Return the error for a model without a file. what: its name."""
    folder = Path(model).expanduser()
    if offline and not folder.is_dir():
        cache = "the cache of huggingface_hub (call it once without offline=True)"
        return FileNotFoundError(f"{function}: {model} has no {what}, in {cache}")
    pickled = (folder / "pytorch_model.bin").is_file()
    hint = " (pytorch_model.bin is a pickle: write it with safetensors.torch.save_file)" if pickled else ""
    return FileNotFoundError(f"{function}: {model} has no {what}{hint}")


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name == PurePath(name).name


def _json(function: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{function}: {file} is damaged, expected JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{function}: {file} holds a {type(content).__name__}, expected a JSON object")
    return content


def _finder(function: str, model: Any, offline: bool, revision: str | None) -> _Find:
    """Return the function that finds a model's files, in a folder if there is one, else on the hub."""
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"{function}: model is a {type(model).__name__}, expected a folder or 'org/model'")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return lambda name: folder / name if (folder / name).is_file() else None
    if folder.is_file():
        raise FileNotFoundError(
            f"{function}: {model} is a file, expected its folder (tp.checkpoint.load reads a single file)"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        raise FileNotFoundError(f"{function}: there is no folder {str(model)!r}, nor is it like 'org/model'")
    return _hub(function, str(model), offline, revision)


def _hub(function: str, model: str, offline: bool, revision: str | None) -> _Find:
    try:
        # Imported here, because it is an extra.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"{function}: there is no folder {model!r}, and models of the hub need huggingface_hub: "
            'pip install "treepie[hub]"'
        ) from error

    def find(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(model, name, revision=revision, local_files_only=offline))
        except LocalEntryNotFoundError as error:  # not in the cache, and the hub was not reached
            if offline:
                return None
            raise FileNotFoundError(f"{function}: {model} could not be fetched: {error}") from error
        except EntryNotFoundError:  # the hub has no such file
            return None

    return find
