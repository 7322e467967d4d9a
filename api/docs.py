"""`python -m treepie.docs FOLDER` writes the reference of the public interface as HTML pages.

pdoc lays out the pages; `to_html` renders docstrings in the form that this project gives them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import html
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MemberDescriptorType, ModuleType
from typing import Any

from .namespace import Elsewhere

#: The pages besides the one of `treepie` itself.
SUBMODULES = (
    *(
        "callback",
        "checkpoint",
        "data",
        "datasets",
        "augment",
        "distributed",
        "fn",
        "hub",
        "init",
        "layer",
        "loss",
        "math",
    ),
    *("math", "metric", "onnx", "optim", "optim.schedule", "ptree", "rng"),
)

#: Pages of modules that need a package which may not be installed; they are left out where it is not.
OPTIONAL = ("sklearn",)

#: Names whose values hold no docstring.
CONSTANTS = {
    "__version__": "The version of the package.",
    "bfloat16": "The name of bfloat16: a precision of products and of files, not a dtype of tensors.",
    "bool": "The dtype of bools: NumPy's `bool`, one byte an element.",
    "bool_": "Another name of `bool`.",
    "float32": "The dtype of 32-bit floats, the default of creation functions, layers and random numbers.",
    "float64": "The dtype of 64-bit floats.",
    "int32": "The dtype of 32-bit integers, the default for Python's integers.",
    "int64": "The dtype of 64-bit integers.",
}

_NAMES = r"\*{0,2}\w+(?:, \*{0,2}\w+)*"
_ITEM = re.compile(rf"({_NAMES}): (.*)")
_NEXT_ITEM = re.compile(rf"  (?={_NAMES}: )")
_RAISES = re.compile(r"(Raises) (.*)")
_CODE = re.compile(r"(`+)(.+?)\1")
_ADDRESS = re.compile(r"https?://[^\s<>]*[^\s<>.,;:)]")

_DECORATORS = ("@classmethod", "@dataclass", "@staticmethod")

_CSS = """
.pdoc .docstring dl { margin: 0.5rem 0; }
.pdoc .docstring dt { float: left; clear: left; margin-right: 0.6rem; }
.pdoc .docstring dt::after { content: ":"; }
.pdoc .docstring dd { margin-left: 2rem; }
"""


def _inline(text: str) -> str:
    """Return a line of prose as HTML: `code` in backticks and addresses are marked up, all else is text."""
    linked = _ADDRESS.sub(lambda m: f'<a href="{m[0]}">{m[0]}</a>', html.escape(text, quote=False))
    return _CODE.sub(lambda m: f"<code>{m[2].strip()}</code>", linked)


def _example(text: str) -> str:
    import pygments
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonConsoleLexer

    formatter = HtmlFormatter(cssclass="pdoc-code codehilite")
    return str(pygments.highlight(text, PythonConsoleLexer(), formatter))


def _blocks(lines: Sequence[str]) -> Iterator[tuple[str | None, str]]:
    """Yield (name, meaning) of each entry of a paragraph, and (None, text) of prose.

    An entry is `name: meaning`, at the start of a line or after two spaces; its further lines may be
    indented. `Raises ...` is an entry too.
    """
    name: str | None = None
    text: list[str] = []
    for line in lines:
        for k, part in enumerate(_NEXT_ITEM.split(line.strip())):
            ended = not text or text[-1].endswith((".", ":", ")"))
            start = None
            if k > 0 or (not line.startswith(" ") and (ended or name is not None)):
                start = _ITEM.match(part) or _RAISES.match(part)
            prose = name is not None and ended and part[:1].isupper() and not line.startswith(" ")
            if (start or prose) and text:
                yield name, " ".join(text)
                name, text = None, []
            if start:
                name, part = start[1], start[2]
            text.append(part.strip())
    if text:
        yield name, " ".join(text)


def _paragraph(paragraph: str) -> Iterator[str]:
    lines = paragraph.split("\n")
    if lines[0].startswith(">>>"):
        yield _example(paragraph)
        return
    if all(line.startswith("    ") for line in lines):
        yield f"<pre>{html.escape(paragraph)}</pre>"
        return
    open_list = False
    for name, text in _blocks(lines):
        if (name is not None) != open_list:
            yield "</dl>" if open_list else "<dl>"
            open_list = not open_list
        if name is None:
            yield f"<p>{_inline(text)}</p>"
        else:
            term = name if name == "Raises" else f"<code>{html.escape(name)}</code>"
            yield f"<dt>{term}</dt><dd>{_inline(text)}</dd>"
    if open_list:
        yield "</dl>"


def to_html(docstring: str) -> str:
    """Return a docstring as HTML: prose, lists of `name: meaning` lines, and examples.

    >>> to_html("Return the mean.\\n\\nx: (n, c) floats.")
    '<p>Return the mean.</p>\\n<dl>\\n<dt><code>x</code></dt><dd>(n, c) floats.</dd>\\n</dl>'
    """
    summary, *paragraphs = re.split(r"\n\s*\n", docstring.strip())
    parts = [f"<p>{_inline(' '.join(summary.split()))}</p>"]
    return "\n".join([*parts, *(part for p in paragraphs for part in _paragraph(p))])


def public_names(module: ModuleType) -> list[str]:
    """Return the public names of a module without its submodules."""
    return [n for n in module.__all__ if not isinstance(getattr(module, n), ModuleType)]


def modules() -> dict[str, ModuleType]:
    """Return the public modules by the names that users call them by.

    >>> sorted(modules())[:2]
    ['treepie', 'treepie.augment']
    """
    root = importlib.import_module("treepie")
    found = {"treepie": root}
    for name in SUBMODULES:
        module: Any = root
        for part in name.split("."):
            module = getattr(module, part)
        found[f"treepie.{name}"] = module
    for name in OPTIONAL:
        with contextlib.suppress(ImportError):
            found[f"treepie.{name}"] = getattr(root, name)
    return found


class _Annotation:
    """An annotation as it is written in the source, where `TensorLike` is one word instead of eight types."""

    def __init__(self, text: Any, links: Mapping[str, str]) -> None:
        text = text if isinstance(text, str) else inspect.formatannotation(text)
        self.text = re.sub(r"(?<![\w.])[A-Z]\w+", lambda m: links.get(m[0], m[0]), text)

    def __repr__(self) -> str:
        return self.text


def _annotate(member: Any, links: Mapping[str, str]) -> None:
    """Give a member the annotations of its source, where classes become links; drop what is internal."""
    if member.name.startswith("_") and member.name != "__init__":
        return
    if member.kind in ("class", "function"):
        member.decorators = [d for d in member.decorators if d.startswith(_DECORATORS)]
    if member.kind == "class":
        described = member.docstring
        for name, value in list(vars(member.obj).items()):
            slot = isinstance(value, MemberDescriptorType) and f"{name}: " not in described
            if slot or isinstance(value, Elsewhere):  # not part of the interface
                del member.members[name]
            elif type(value).__module__.startswith("sklearn."):
                del member.members[name]  # a method that scikit-learn adds to every estimator
        for inner in member.own_members:
            _annotate(inner, links)
    elif member.kind == "function":
        signature = inspect.signature(member.obj)
        empty = inspect.Parameter.empty
        parameters = [
            p if p.annotation is empty else p.replace(annotation=_Annotation(p.annotation, links))
            for p in signature.parameters.values()
        ]
        result: Any = signature.return_annotation
        if result is not empty:
            result = empty if member.name == "__init__" else _Annotation(result, links)
        member.signature = signature.replace(parameters=parameters, return_annotation=result)


def _links() -> dict[str, str]:
    """Return the full names of public classes by their names; of two of a name, the outer one's."""
    found: dict[str, str] = {}
    for name, module in modules().items():
        for n in public_names(module):
            if isinstance(getattr(module, n), type):
                found.setdefault(n, f"{name}.{n}")
    return found


def _page(name: str, module: ModuleType) -> Any:
    """Return pdoc's description of a module with its public names, which inner modules define."""
    from pdoc import doc

    public = ModuleType(name, module.__doc__)
    names = public_names(module)
    vars(public).update({n: getattr(module, n) for n in names}, __all__=names)
    page = doc.Module(public)
    for n, member in page.members.items():
        value = getattr(module, n)
        if isinstance(value, functools.partial):  # a function that a constructor returned
            function = doc.Function(name, n, value.func, (name, n))
            summary = (value.__doc__ or "").partition("\n")[0]
            function.docstring = f"{summary}\n\nThe same as `{value!r}`."
            page.members[n] = function
        elif n in CONSTANTS:
            member.docstring = CONSTANTS[n]
    return page


def build(folder: Path) -> None:
    """Write the pages into a folder, which is created where it is missing."""
    from jinja2 import ChoiceLoader, DictLoader
    from pdoc import render

    render.configure(docformat="markdown")
    render.env.filters["to_html"] = to_html
    render.env.loader = ChoiceLoader([DictLoader({"custom.css": _CSS}), render.env.loader])
    pages = {name: _page(name, module) for name, module in modules().items()}
    links = _links()
    for name, page in pages.items():
        for member in page.members.values():
            _annotate(member, links)
        inner = [p for n, p in pages.items() if n.rpartition(".")[0] == name]
        page.submodules = inner
        file = folder / f"{name.replace('.', '/')}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render.html_module(page, pages), encoding="utf-8")
    (folder / "index.html").write_text(render.html_index(pages), encoding="utf-8")
    (folder / "search.js").write_text(render.search_index(pages), encoding="utf-8")


def main(arguments: Sequence[str]) -> int | str:
    """Write the reference into the folder that is named, and return the exit status or an error."""
    parser = argparse.ArgumentParser("python -m treepie.docs", description="Write the reference as HTML.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="is created where it does not exist")
    folder: Path = parser.parse_args(arguments).folder
    try:
        importlib.import_module("pdoc")
    except ModuleNotFoundError:
        return 'treepie.docs: pdoc is not installed, run pip install "treepie[docs]"'
    build(folder)
    print(folder / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
