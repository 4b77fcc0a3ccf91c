"""Measure how far the suggestions of the learning-rate finder differ between seeds.

    python benchmarks/lr_finder_stability.py --seeds 5

On the chapter's network and data, with plain SGD and batches of 128. A seed decides the
initial weights and the order of the data. No validation or test data are used.

Appends a row for each seed to benchmarks/results/lr_finder.csv and leaves out what is
already there, so that it can be stopped and started again.
"""

import argparse
import pathlib

import keras
import pandas as pd
from record import ROOT, append, surroundings

import train
from callbacks.lr_finder import LRFinder
from recipes import fashion_mnist

RESULTS = ROOT / "benchmarks" / "results" / "lr_finder.csv"


def measure(data, seed):
    """Run the finder once on a new network; return its row."""
    keras.utils.set_random_seed(seed)
    model = train.compiled(train.network(), keras.optimizers.SGD(0.001))
    finder = LRFinder(seed=seed)
    finder.run(model, data.x_train, data.y_train, batch_size=128)
    rates = finder.suggestions["learning_rate"].map("{:.4g}".format)
    return {"seed": seed, **rates, "steps": len(finder.losses)}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    facts = surroundings()
    path = options.results
    done = pd.read_csv(path)["seed"].tolist() if path.exists() else []
    data = fashion_mnist.load(train.DATA_FOLDER)
    for seed in range(options.seeds):
        if seed not in done:
            row = {**measure(data, seed), **facts}
            append([row], path)
            print(pd.Series(row).to_string(), flush=True)


if __name__ == "__main__":
    main()
