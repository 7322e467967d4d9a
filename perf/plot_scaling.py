"""Draws the efficiency that `scaling.py` predicts, by the number of nodes."""

import pathlib

FILE = pathlib.Path(__file__).with_name("scaling.svg")
COLOURS = {"10 Gb/s": "#ee6c35", "100 Gb/s": "#5577cc", "200 Gb/s": "#2a8a3e"}


def draw(lines):
    """Write the plot. lines: "`model`, network" -> nodes -> efficiency."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "treepie", "font.size": 11}
    from matplotlib import pyplot

    names = list(dict.fromkeys(key.split("`")[1] for key in lines))
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for key, of in lines.items():
        name, network = key.split("`")[1], key.split(", ")[1]
        dashes = ["-", "--"][names.index(name)]
        axes.plot(of.keys(), of.values(), dashes, color=COLOURS[network], label=f"{name}, {network}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(of), map(str, of))
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("nodes, each with the same batch")
    axes.set_ylabel("predicted efficiency")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(FILE, metadata={"Date": None})
    pyplot.close(figure)
