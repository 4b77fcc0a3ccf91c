"""Score MC Dropout, and a temperature, on two runs of train.py.

    python benchmarks/uncertainty.py --seeds 5

Trains `dropout`, the book's net, and `recommended` with each seed, and predicts the
test images in one plain pass and with MC Dropout, each also after a temperature fitted
on the validation images. Foreign images are made from the test images.

Appends four rows for each run and seed to benchmarks/results/uncertainty.csv and leaves
out what is already there, so that it can be stopped and started again.

The columns `SET by SCORE` are areas under the ROC curve: how well a score ranks the
wrong predictions above the right ones, or the images of a foreign set above the test
images. The temperature acts on the mean, so it leaves the mutual information as it is.
"""

import argparse
import pathlib

import keras
import numpy as np
import pandas as pd
from record import ROOT, append, surroundings

import train
from recipes import fashion_mnist
from recipes.mc_dropout import MCDropoutPredictor
from recipes.uncertainty import (
    accuracy_at_coverage,
    apply_temperature,
    auroc,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    predictive_entropy,
)

RESULTS = ROOT / "benchmarks" / "results" / "uncertainty.csv"
RUNS = ("dropout", "recommended")


def measure(name, data, seed):
    """Train one run; return a row for each way to predict with it."""
    model = trained(train.RUNS[name], data, seed)
    images = {"valid": data.x_valid, "test": data.x_test, **out_sets(data.x_test)}
    plain = {
        key: model.predict(x, batch_size=1000, verbose=0) for key, x in images.items()
    }
    predictor = MCDropoutPredictor(model, seed=seed)
    sampled = {key: predictor.predict(x, verbose=0) for key, x in images.items()}
    means = {key: prediction.mean for key, prediction in sampled.items()}
    informations = {
        key: prediction.mutual_information for key, prediction in sampled.items()
    }

    rows = []
    for kind, probabilities, information in (
        ("deterministic", plain, None),
        ("MC Dropout", means, informations),
    ):
        temperature = fit_temperature(probabilities["valid"], data.y_valid)
        tempered = {
            key: apply_temperature(p, temperature) for key, p in probabilities.items()
        }
        row = {"run": name, "seed": seed, "kind": kind, "temperature": 1.0}
        rows.append(row | scores(probabilities, data.y_test, information))
        row |= {"kind": f"{kind}, temperature", "temperature": round(temperature, 5)}
        rows.append(row | scores(tempered, data.y_test))
    return rows


def trained(run, data, seed):
    """The model of a run of train.py, as train.py trains it."""
    keras.utils.set_random_seed(seed)
    batches = fashion_mnist.epoch_batches(
        data.x_train, data.y_train, run.batch_size, seed=seed
    )
    model, callbacks = run.build(train.Plan(run.epochs, len(batches)))
    model.fit(batches, epochs=run.epochs, callbacks=callbacks, verbose=0)
    return model


def out_sets(images):
    """Foreign images of the same size and range 0..1, the same in each call."""
    rng = np.random.default_rng(0)
    pixels = images.reshape(len(images), -1)
    return {
        "inverted": 1 - images,
        "shuffled": rng.permuted(pixels, axis=1).reshape(images.shape),
        "noise": rng.random(images.shape, dtype=np.float32),
        "rotated": np.rot90(images, axes=(1, 2)),
    }


def scores(probabilities, labels, information=None):
    """Measures of the predictions of the test images and of the foreign ones.

    `probabilities` is {set: (inputs, classes)}; `information`, {set: (inputs,)}, is
    there if they are means of samples.
    """
    test = probabilities["test"]
    is_wrong = test.argmax(axis=1) != labels
    row = {
        "accuracy": 1 - np.mean(is_wrong),
        "negative log likelihood": negative_log_likelihood(test, labels),
        "Brier score": brier_score(test, labels),
        "calibration error": expected_calibration_error(test, labels),
        "accuracy at coverage 0.8": accuracy_at_coverage(test, labels, coverage=0.8),
    }
    confidence = {key: 1 - p.max(axis=1) for key, p in probabilities.items()}
    entropy = {key: predictive_entropy(p) for key, p in probabilities.items()}
    for name, score in (
        ("confidence", confidence),
        ("entropy", entropy),
        ("mutual information", information),
    ):
        row[f"errors by {name}"] = score and auroc(score["test"], is_wrong)
        for foreign in [key for key in probabilities if key not in ("valid", "test")]:
            row[f"{foreign} by {name}"] = score and auroc(
                np.concatenate([score["test"], score[foreign]]),
                np.repeat([False, True], [len(labels), len(score[foreign])]),
            )
    return {key: None if v is None else round(float(v), 5) for key, v in row.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    facts = surroundings()
    key, path = ["run", "seed"], options.results
    done = pd.read_csv(path)[key].values.tolist() if path.exists() else []
    data = fashion_mnist.load(train.DATA_FOLDER)
    for seed in range(options.seeds):
        for name in RUNS:
            if [name, seed] in done:
                continue
            rows = [{**row, **facts} for row in measure(name, data, seed)]
            append(rows, path)
            print(pd.DataFrame(rows).T.to_string(), flush=True)


if __name__ == "__main__":
    main()
