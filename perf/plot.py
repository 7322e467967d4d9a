"""Draws README's table of steps: how long each library takes, as a multiple of treepie's time."""

import pathlib
import re

FILE = pathlib.Path(__file__).with_name("train.svg")
COLOURS = {"PyTorch": "#ee6c35", "torch.compile": "#8c564b", "JAX": "#5577cc"}


def ratios(header, rows):
    """Return model -> library -> its median over treepie's, of the table's cells "best / median"."""
    found = {}
    for first, cells in rows.items():
        pairs = [(h, c) for h, c in zip(header, cells, strict=True) if h.endswith(", ms")]
        medians = {h.removesuffix(", ms"): float(c.split("/")[1]) for h, c in pairs}
        ours = medians.pop("treepie")
        found[re.match("`(.*)`", first)[1]] = {library: m / ours for library, m in medians.items()}
    return found


def draw(header, rows):
    """Write the plot."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "treepie", "font.size": 11}
    from matplotlib import pyplot

    found = ratios(header, rows)
    libraries = list(next(iter(found.values())))
    height = 0.8 / len(libraries)
    figure, axes = pyplot.subplots(figsize=(8, 0.4 + 0.85 * len(found)), layout="constrained")
    for k, library in enumerate(libraries):
        ys = [n - 0.4 + (k + 0.5) * height for n in range(len(found))]
        times = [of[library] for of in found.values()]
        axes.barh(ys, [t - 1 for t in times], height * 0.85, 1, color=COLOURS[library], label=library)
        for y, t in zip(ys, times, strict=True):
            axes.text(max(t, 1) * 1.03, y, f"{t:.3g}", va="center", fontsize=9)
    axes.axvline(1, color="#2a8a3e", linewidth=2.5, label="treepie")
    axes.set_xscale("log")
    axes.set_xlim(0.8, 1.25 * max(max(of.values()) for of in found.values()))
    axes.set_xticks(ticks := [t for t in (1, 2, 5, 10, 20, 50) if t < axes.get_xlim()[1]], map(str, ticks))
    axes.minorticks_off()
    axes.set_yticks(range(len(found)), found)
    axes.invert_yaxis()
    axes.set_xlabel("time of a training step, as a multiple of treepie's (shorter is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=1 + len(libraries), frameon=False)
    figure.savefig(FILE, metadata={"Date": None})
    pyplot.close(figure)
