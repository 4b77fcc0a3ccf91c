"""Draw what is here in one picture, from the results: python benchmarks/overview.py.

Writes benchmarks/results/overview.png for the README. Nothing is measured or trained.
"""

import argparse
import pathlib

import chapter_table
import keras
import numpy as np
import pandas as pd
import structures
import table
from matplotlib.figure import Figure
from record import ROOT, whole

from recipes.schedules import Cosine, Exponential, OneCycle, Piecewise

RESULTS = ROOT / "benchmarks" / "results"
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
BATCH_NORM = "sigmoid, batch normalization"


def gradients(axes):
    """The gradient at each of 20 hidden layers, before training."""
    rows = pd.read_csv(RESULTS / "signals.csv")
    for network, weights, color, label, place in (
        ("relu", "He", BLUE, "ReLU, He", (1.5, 0.03)),
        ("relu", "Glorot, LeCun", ORANGE, "ReLU, Glorot as in Keras", (1.5, 2e-5)),
        ("sigmoid", "Glorot, LeCun", RED, "sigmoid, Glorot", (10.5, 1e-9)),
        (BATCH_NORM, "Glorot, LeCun", GREEN, "sigmoid, batch normalization", (1.5, 20)),
    ):
        line = rows[(rows["network"] == network) & (rows["weights"] == weights)]
        axes.plot(line["place"], line["gradient median"], color=color, lw=2)
        axes.text(*place, label, color=color)
    axes.set(yscale="log", ylim=(1e-13, 1e4), xlim=(1, 20))
    axes.set(xlabel="hidden layer", ylabel="gradient, over the last layer's")
    axes.set_xticks([1, 5, 10, 15, 20])


def depths(axes):
    """Training error against depth."""
    rows = pd.read_csv(RESULTS / "structures.csv")
    best = structures.at_best_rate(rows[rows["demonstration"] == "depth"])
    last = best[best["epochs"] == best["epochs"].max()]
    for variant, color, height in (
        ("plain", RED, 0.45),
        ("residual", BLUE, 0.06),
        ("highway, gate bias -4", GREEN, 0.24),
    ):
        errors = (
            1 - last[last["variant"] == variant].groupby("layers")["accuracy"].mean()
        )
        axes.plot(errors.index, errors, "o-", color=color, lw=2)
        axes.text(50, height, variant, color=color, ha="right")
    axes.set(xlabel="hidden layers", ylabel="training images wrong", ylim=(0, 0.65))
    axes.set_xticks([10, 20, 50])


def rates(axes):
    """Four of the schedules."""
    steps = np.arange(1000)
    for schedule, color, label, place in (
        (OneCycle(0.1, 1000), BLUE, "OneCycle", (275, 0.103)),
        (Cosine(0.1, 250, restarts=True), ORANGE, "Cosine, restarts", (610, 0.103)),
        (Exponential(0.1, 700), GREEN, "Exponential", (15, 0.112)),
        (Piecewise([400, 800], [0.06, 0.03, 0.01]), RED, "Piecewise", (815, 0.017)),
    ):
        values = keras.ops.vectorized_map(schedule, steps)
        axes.plot(steps, values, color=color, lw=2)
        axes.text(
            *place, label, color=color, bbox={"fc": "white", "ec": "none", "pad": 1}
        )
    axes.set(xlabel="step", ylabel="learning rate", xlim=(0, 1000), ylim=(0, 0.12))


def chapter(axes):
    """The book's networks: the stored run, its set-up again, ours."""
    rows = pd.read_csv(RESULTS / "chapter.csv")
    labels = []
    for name, row in chapter_table.ROWS.items():
        ours, theirs = (
            rows.loc[rows["run"] == one, "val_accuracy"] for one in (name, row.beside)
        )
        if not row.beside or not len(ours):
            continue
        recorded = chapter_table.ROWS[row.beside].recorded["val_accuracy"]
        place = len(labels)
        axes.plot([theirs.mean(), ours.mean()], [place] * 2, color=GREY, lw=1)
        axes.plot(recorded, place, "x", color="black", ms=7, mew=2)
        axes.plot(theirs.mean(), place, "o", color=ORANGE, ms=7)
        axes.plot(ours.mean(), place, "o", color=BLUE, ms=7)
        labels.append(name.removeprefix("our_").replace("_", " "))
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="validation accuracy", ylim=(len(labels) - 0.5, -1.6))
    for x, color, text in (
        (0.02, "black", "x  its run"),
        (0.28, ORANGE, "•  its set-up, again"),
        (0.80, BLUE, "•  ours"),
    ):
        axes.text(x, 0.92, text, color=color, transform=axes.transAxes)


def foreign(axes):
    """How well scores tell images unlike the training data."""
    rows = pd.read_csv(RESULTS / "uncertainty.csv")
    means = rows[rows["run"] == "recommended"].groupby("kind").mean(numeric_only=True)
    kinds = ["inverted", "shuffled", "noise", "rotated"]
    for place, kind in enumerate(kinds):
        one = means.loc["deterministic", f"{kind} by entropy"]
        many = means.loc["MC Dropout", f"{kind} by mutual information"]
        axes.plot([one, many], [place] * 2, color=GREY, lw=1)
        axes.plot(one, place, "o", color=ORANGE, ms=8)
        axes.plot(many, place, "o", color=BLUE, ms=8)
    axes.axvline(0.5, color="black", ls=":", lw=1)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set(xlim=(0, 1), ylim=(len(kinds) - 0.5, -1.1))
    axes.set(xlabel="told from known images: AUROC (dotted: chance)")
    axes.text(0.02, -0.6, "•  one pass", color=ORANGE)
    axes.text(0.98, -0.6, "•  MC Dropout", color=BLUE, ha="right")


def doctor(axes):
    """What diagnose and the rules of published tools say of faulty programs."""
    rows, _ = table.doctor_rows(pd.read_csv(RESULTS / "doctor_cases.csv"))
    unseen = rows[rows["half"] == "unseen"]
    is_faulty = unseen["kinds"].notna()
    faulty, sound = unseen[is_faulty], unseen[~is_faulty]
    measures = ["faulty:\nflagged", "repaired:\nleft alone", "root cause\nnamed"]
    tools = [name.removesuffix(" right") for name in rows if name.endswith(" right")]
    for tool in tools:
        shares = [
            faulty[f"{tool} flagged"].astype(bool).mean(),
            1 - sound[f"{tool} flagged"].astype(bool).mean(),
            faulty[f"{tool} right"].astype(bool).mean(),
        ]
        axes.plot(shares, range(3), "o", color=ORANGE, ms=7, alpha=0.7)
    ours = [
        faulty["flagged"].astype(bool).mean(),
        1 - sound["flagged"].astype(bool).mean(),
        (faulty["rank"] > 0).mean(),
    ]
    axes.plot(ours, range(3), "D", color=BLUE, ms=9)
    axes.set_yticks(range(3), measures)
    axes.set(xlim=(-0.03, 1.03), ylim=(2.5, -0.9), xlabel="share of the runs")
    axes.text(0, -0.55, f"•  {len(tools)} published tools", color=ORANGE)
    axes.text(1, -0.55, "♦  diagnose", color=BLUE, ha="right")


PANELS = {
    "Does the gradient arrive?": (gradients, "recipes/initializers.py, layers.py"),
    "Does depth help?": (depths, "recipes/layers.py"),
    "Which learning rate?": (rates, "recipes/schedules.py"),
    "Better than the book's runs?": (
        chapter,
        "all recipes; benchmarks/chapter_table.py",
    ),
    "Has it seen such an image?": (foreign, "recipes/mc_dropout.py, uncertainty.py"),
    "Why does it not train?": (doctor, "recipes/diagnose.py"),
}


def overview():
    """A figure with a panel for each question: the answer, measured."""
    figure = Figure(figsize=(12.6, 7.4), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
    for axes, (question, (draw, file)) in zip(
        figure.subplots(2, 3).flat, PANELS.items(), strict=True
    ):
        draw(axes)
        axes.set_title(f"{question}\n", size=14, weight="bold", loc="left")
        axes.text(0, 1.025, file, color=GREY, transform=axes.transAxes)
        axes.grid(alpha=0.3)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = RESULTS / "overview.png"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    path = parser.parse_args(arguments).output
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as new:
        overview().savefig(new, format="png", dpi=80)
    print(path)


if __name__ == "__main__":
    main()
