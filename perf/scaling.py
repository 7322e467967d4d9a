"""Training steps on several ranks: measured here, and predicted for more nodes.

    python perf/scaling.py              # gpt and mlp, in about 5 minutes
    python perf/scaling.py mlp          # one of them
    python perf/scaling.py --write      # and write README's tables and the plot

One process of two threads, ranks of one thread each, and PyTorch's DistributedDataParallel on gloo train the
same model on the same global batch, as their users write it (`scaling_jobs.py`), by turns. Communication is
exposed for as long as a step takes longer than one whose sums are left out.

The prediction is an alpha-beta model: on each node the ranks of one machine, measured here, then a sum over
nodes of 2 (N - 1) messages that are sent one after another, 2 latencies, and 2 (N - 1) / N of the bytes
through the network. Nothing of it is hidden behind computing. Networks are assumed, not measured.
"""

import argparse

import arena
import models
import numpy as np
import plot_scaling
import report
from scaling_jobs import Job, has_micro_shards

NAMES = {name: models.MODELS[name] for name in ("gpt", "mlp")}
#: Turns, and steps of each.
TURNS = {"gpt": (6, 8), "mlp": (25, 30)}
#: Of the time of one process, of DDP's; exposed communication of a step; cost of micro shards.
BARS = {"process": 1.10, "DDP": 0.8, "gpt": 0.05, "mlp": 0.10, "micro_shards": 1.10}

#: Bytes of the sums that the model is fitted to.
SIZES = [1 << k for k in (10, 12, 14, 16, 18, 20, 21, 22, 23)]
#: Assumed: name -> bytes a second, seconds of latency, seconds of the processor for a message.
NETWORKS = {
    "10 Gb/s": (10e9 / 8 * 0.9, 30e-6, 5e-6),
    "100 Gb/s": (100e9 / 8 * 0.9, 2e-6, 0.5e-6),
    "200 Gb/s": (200e9 / 8 * 0.9, 1.5e-6, 0.4e-6),
}
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHOWN = (2, 16, 128, 1024)

ONE, TWO, FOUR = "1 process, 2 threads", "2 ranks", "4 ranks"
#: Row -> job, request.
ROWS = {
    ONE: (ONE, "steps"),
    TWO: (TWO, "steps"),
    "2 ranks, without sums": (TWO, "without sums"),
    "2 ranks, micro_shards=4": (TWO, "micro_shards"),
    FOUR: (FOUR, "steps"),
    "4 ranks, without sums": (FOUR, "without sums"),
    "DDP, 2 ranks": ("DDP, 2 ranks", "steps"),
    "DDP, 4 ranks": ("DDP, 4 ranks", "steps"),
}
STEP_HEADER = ["step", "best / median, ms", "of one process", "of DDP", "exposed, ms", "sums", "kB added up"]
PREDICTED_HEADER = ["step of a node, network", "sum of 2 nodes, ms", *(f"{n} nodes" for n in SHOWN)]


def start(ddp):
    """Return the jobs, each of which sleeps until it is asked."""
    jobs = {
        ONE: Job("treepie", 1, 2),
        TWO: Job("treepie", 2, 1),
        FOUR: Job("treepie", 4, 1),
        "messages": Job("treepie", 2, 1, TREEPIE_RANKS_PER_NODE="1"),
    }
    if ddp:
        jobs |= {f"DDP, {n} ranks": Job("DDP", n, 1) for n in (2, 4)}
    return jobs


def measure(name, jobs):
    """Return row -> seconds of steps, by turns."""
    turns, count = TURNS[name]
    left_out = set() if has_micro_shards() else {"2 ranks, micro_shards=4"}
    rows = {row: r for row, r in ROWS.items() if r[0] in jobs and row not in left_out}
    times = {row: [] for row in rows}
    for turn in range(turns + 1):
        for row, (job, what) in rows.items():
            steps = jobs[job].ask(what, name, count if turn else 2)
            if turn:  # the first one compiles
                times[row] += steps
    return times


def rows_of(name, times, counts):
    """Return the rows of README's table, and the figures that have bars."""
    median = {row: arena.median(t) for row, t in times.items()}
    cells, figures = {}, {}
    for row, seconds in times.items():
        ranks = 4 if "4 ranks" in row else 2
        ours = row in (TWO, FOUR)
        ddp, silent = median.get(f"DDP, {ranks} ranks"), median.get(f"{ranks} ranks, without sums")
        exposed = median[row] - silent if ours else None
        key = f"`{name}`, {row}"
        cells[key] = [
            key,
            f"{arena.best(seconds) * 1e3:.3g} / {median[row] * 1e3:.3g}",
            f"{median[row] / median[ONE]:.2f}",
            f"{median[row] / ddp:.2f}" if ddp and ours else "",
            f"{exposed * 1e3:.3g} ({exposed / median[row]:.0%})" if ours else "",
            f"{counts[row][0]}" if ours else "",
            f"{counts[row][1] / 1e3:.0f}" if ours else "",
        ]
    figures["process"] = median[TWO] / median[ONE]
    figures[name] = 1 - median["2 ranks, without sums"] / median[TWO]
    if "DDP, 2 ranks" in median:
        figures["DDP"] = median[TWO] / median["DDP, 2 ranks"]
    if "2 ranks, micro_shards=4" in median:
        figures["micro_shards"] = median["2 ranks, micro_shards=4"] / median[TWO]
    return cells, figures


def sums(job, kind):
    """Return [(bytes, seconds)] of the sums of a job."""
    return [(size, arena.median(job.ask("sum", kind, size))) for size in SIZES]


def fit(points):
    """Return alpha, in seconds, and beta, in seconds a byte, with the least relative errors."""
    sizes, seconds = (np.array(column, float) for column in zip(*points, strict=True))
    columns = np.stack([np.ones_like(sizes), sizes], 1) / seconds[:, None]
    found, *_ = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)
    return tuple(float(x) for x in found.clip(0))


def sum_of_nodes(nodes, size, network):
    """Return the predicted seconds of a sum over nodes, of so many bytes."""
    if nodes == 1:
        return 0.0
    bandwidth, latency, message = NETWORKS[network]
    return 2 * (latency + (nodes - 1) * (message + size / nodes / bandwidth))


def efficiency(step, size, network):
    """Return nodes -> the predicted part of a step's time that is that of one node, in weak scaling."""
    return {n: step / (step + sum_of_nodes(n, size, network)) for n in NODES}


def predict(name, step, size):
    """Return the rows of README's table, and line -> nodes -> efficiency."""
    cells, lines = {}, {}
    for network in NETWORKS:
        key = f"`{name}`, {network}"
        of = lines[key] = efficiency(step, size, network)
        shown = [f"{step / of[n] * 1e3:.3g} ms, {of[n]:.0%}" for n in SHOWN]
        cells[key] = [f"`{name}`, {network}", f"{sum_of_nodes(2, size, network) * 1e3:.3g}", *shown]
    return cells, lines


def check(name, figures):
    """Return a line for each bar of a model that is missed."""
    return [f"{name}, {key}: {x:.3f}, at most {BARS[key]}" for key, x in figures.items() if x > BARS[key]]


def assumptions(shared, messages):
    """Return what the prediction is made from, in a sentence."""
    networks = "; ".join(
        f"{name}: {1e6 * latency:.3g} us latency, {1e6 * message:.3g} us a message, 90 % of the bandwidth"
        for name, (_, latency, message) in NETWORKS.items()
    )
    ways = (("in shared memory", shared), ("by messages", messages))
    here = " and ".join(f"{1e6 * a:.3g} us + {1e12 * b:.3g} us a MB {way}" for way, (a, b) in ways)
    return (
        "Predicted for nodes like this machine, in weak scaling: a step, and its efficiency. Each node has "
        f"the batch above. Sums of 2 ranks took {here} here. Assumed of networks: {networks}. No sum is "
        "hidden behind computing:"
    )


def overlap(job):
    """Print what a sum by messages costs when the ranks compute meanwhile."""
    for size in (1 << 20, 1 << 22, 1 << 24):
        alone, work, tested, untested = (1e3 * t for t in job.ask("overlap", str(size), 15))
        print(
            f"a sum of {size >> 20} MB by messages takes {alone:.2f} ms; computing for {work:.1f} ms "
            f"meanwhile hides {1 - (tested - work) / alone:.0%} with a test every 0.5 ms, "
            f"{1 - (untested - work) / alone:.0%} without",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []])
    parser.add_argument("--write", action="store_true", help="write README's tables and the plot")
    options = parser.parse_args()
    jobs = start("PyTorch" in models.installed()[0])
    cells, predicted, lines, missed = {}, {}, {}, []
    try:
        shared, messages = fit(sums(jobs[TWO], "shared")), fit(sums(jobs["messages"], "private"))
        overlap(jobs["messages"])
        for name in options.names or NAMES:
            times = measure(name, jobs)
            counts = {row: jobs[row].ask("counts", name, 3) for row in (TWO, FOUR)}
            of_model, figures = rows_of(name, times, counts)
            cells |= of_model
            missed += check(name, figures)
            rows, plotted = predict(name, arena.median(times[TWO]), counts[TWO][1])
            predicted |= rows
            lines |= plotted
            print(*report.table(STEP_HEADER, list(of_model.values())), "", sep="\n", flush=True)
    finally:
        for job in jobs.values():
            job.end()
    print(
        assumptions(shared, messages), "", *report.table(PREDICTED_HEADER, list(predicted.values())), sep="\n"
    )
    print(*(missed or ["all bars are held"]), sep="\n")
    if options.write:
        steps = ", ".join(f"{name} {turns * (count)}" for name, (turns, count) in TURNS.items())
        every = {f"`{name}`, {row}": None for name in NAMES for row in ROWS}
        caption = f"2 cores; ranks have one thread each; steps, by turns: {steps}."
        report.write("perf/scaling.py", caption, STEP_HEADER, every | cells)
        every = {f"`{name}`, {network}": None for name in NAMES for network in NETWORKS}
        text = assumptions(shared, messages)
        report.write("perf/scaling.py, predicted", text, PREDICTED_HEADER, every | predicted)
        if len(predicted) == len(every):
            plot_scaling.draw(lines)


if __name__ == "__main__":
    main()
