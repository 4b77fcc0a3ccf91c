"""Draw all learning-rate schedules side by side: python benchmarks/gallery.py.

Writes benchmarks/results/schedules.png for the README. Nothing is measured or trained.
"""

import argparse
import pathlib

from record import ROOT, whole

from recipes.schedules import (
    Cosine,
    Cyclical,
    Exponential,
    Floor,
    InEpochs,
    Joined,
    OneCycle,
    Piecewise,
    PowerDecay,
    Warmup,
    plot_schedules,
)

PICTURE = ROOT / "benchmarks" / "results" / "schedules.png"
TOTAL_STEPS = 1000
STEPS_PER_EPOCH = 100

# Three to a row: smooth falls, stairs and a floor, up and down once, and again.
SCHEDULES = {
    "PowerDecay": PowerDecay(0.1, 100),
    "Exponential": Exponential(0.1, 700),
    "Cosine": Cosine(0.1, 1000),
    "Piecewise": Piecewise([400, 800], [0.1, 0.03, 0.01]),
    "InEpochs: Piecewise by epoch": InEpochs(
        Piecewise([2, 4, 6, 8], [0.1, 0.07, 0.05, 0.03, 0.01]), STEPS_PER_EPOCH
    ),
    "Floor: under PowerDecay": Floor(PowerDecay(0.1, 100), 0.03),
    "Warmup: before Cosine": Warmup(Cosine(0.1, 800), 200),
    "OneCycle": OneCycle(0.1, 1000),
    "OneCycle, linear, three phases": OneCycle(
        0.1, 1000, anneal="linear", three_phase=True
    ),
    "Cosine, restarts": Cosine(0.1, 250, restarts=True),
    "Cosine, longer and lower restarts": Cosine(
        0.1, 143, restarts=True, length_factor=2, peak_factor=0.6
    ),
    "Joined: Cyclical, then Exponential": Joined(
        [Cyclical(0.02, 0.1, 125), Exponential(0.02, 500)], [500]
    ),
    "Cyclical, triangular": Cyclical(0.02, 0.1, 125),
    "Cyclical, triangular2": Cyclical(0.02, 0.1, 125, mode="triangular2"),
    "Cyclical, exp_range": Cyclical(
        0.02, 0.1, 125, mode="exp_range", factor_per_step=0.9985
    ),
}


def gallery():
    """A figure with a panel for each schedule, all to one scale."""
    figure = plot_schedules(SCHEDULES, TOTAL_STEPS)
    figure.set_size_inches(9, 9.4)
    momentum_axes = [axes for axes in figure.axes if axes.get_ylabel() == "momentum"]
    panels = [axes for axes in figure.axes if axes not in momentum_axes]
    for i, axes in enumerate(panels):
        axes.set(yscale="linear", ylim=(0, 0.105), yticks=[0, 0.05, 0.1])
        axes.set(xlim=(0, TOTAL_STEPS), xticks=[0, 500, 1000])
        axes.lines[0].set_linewidth(2)
        axes.tick_params(labelleft=i % 3 == 0, labelbottom=i >= len(panels) - 3)
        axes.grid(alpha=0.3)
    for axes in momentum_axes:
        axes.set(ylim=(0.84, 0.955), yticks=[0.85, 0.95], ylabel="")
        axes.tick_params(labelsize="small", pad=1)
        color = axes.lines[0].get_color()
        axes.text(985, 0.894, "momentum", color=color, size="small", ha="right")
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, default=PICTURE)
    path = parser.parse_args(arguments).output
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as new:
        gallery().savefig(new, format="png", dpi=100)
    print(path)


if __name__ == "__main__":
    main()
