"""Measure the diagnoses: faulty programs, their repaired twins, and healthy runs.

    python benchmarks/doctor_cases.py --half unseen
    python benchmarks/doctor_cases.py --healthy

For each program of doctor_programs.py and each seed: train it, diagnose it, make the
change of the first finding, alone, and train again; and diagnose the repaired twin. A
run is repaired when it scores at least nine tenths of its twin. Beside it, what the
rules of doctor_published.py say of the same runs. `--healthy` trains 20 runs of
train.py on Fashion-MNIST, which should give no finding.

Appends a row for each program and seed to benchmarks/results/doctor_cases.csv and
leaves out what is already there, so that it can be stopped and started again. From all
rows of the unseen half it draws benchmarks/results/doctor_cases.png: the kind of the
fault against that of the first finding.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd
from doctor_programs import BASES, CHECKS, KINDS, PROGRAMS, Program, apply, run
from doctor_published import RULES, published
from matplotlib import colormaps
from matplotlib.figure import Figure
from record import ROOT, append, surroundings, whole
from table import doctor_rows

from recipes.diagnose import diagnose

RESULTS = ROOT / "benchmarks" / "results" / "doctor_cases.csv"
NEAR = 0.9  # of the twin's score

# A finding's symptom -> the kinds of fault it speaks of. Two where one mistake has two
# ends, as an output and a loss that do not fit each other.
SYMPTOMS = {
    "inputs not finite": ("NaN data",),
    "labels not finite": ("NaN data",),
    "inputs unscaled": ("unscaled data",),
    "inputs constant": ("unscaled data",),
    "targets unscaled": ("unscaled data",),
    "SELU on inputs that are not standardized": ("unscaled data",),
    "softmax of one unit": ("output activation", "loss"),
    "targets outside the range of the output": ("output activation",),
    "targets outside the range of the loss": ("loss",),
    "logits with bounds": ("output activation",),
    "sigmoid for exclusive classes": ("output activation",),
    "softmax for several labels at once": ("output activation", "loss"),
    "logits taken for probabilities": ("loss", "output activation"),
    "probabilities taken for logits": ("loss", "output activation"),
    "one-hot labels for a sparse loss": ("loss",),
    "class numbers for a categorical loss": ("loss",),
    "one unit for a sparse loss": ("loss", "output activation"),
    "labels do not fit the output": ("labels", "loss"),
    "labels are no numbers": ("labels",),
    "labels out of range": ("labels", "loss"),
    "labels unrelated to inputs": ("labels",),
    "data set": ("labels",),
    "zero weights": ("initial weights",),
    "symmetric weights": ("initial weights",),
    "the same weights in two layers": ("initial weights",),
    "SELU without LeCun's weights": ("initial weights",),
    "initial loss above chance": ("initial weights",),
    "fading signal": ("initial weights",),
    "saturated units": ("saturating depth", "initial weights"),
    "vanishing gradient": ("saturating depth",),
    "exploding gradient": ("exploding depth",),
    "missing normalization": ("missing normalization",),
    "dead units": ("dead ReLU",),
    "dying units": ("rate too high", "dead ReLU"),
    "units driven to saturation": ("rate too high",),
    "divergence": ("rate too high",),
    "oscillation": ("rate too high",),
    "steps too long": ("rate too high",),
    "steps too short": ("rate too low",),
    "slow learning": ("rate too low",),
    "momentum too high": ("optimizer settings",),
    "steps held back": ("optimizer settings",),
    "overfitting": ("overfitting",),
    "underfitting": ("underfitting",),
    "linear hidden layers": ("underfitting",),
    "layers too narrow": ("underfitting",),
    "penalties too strong": ("underfitting",),
    "still learning": ("too few epochs",),
    "plateau": (),
    "plain dropout with SELU": (),
}


def kinds_of(finding):
    """The kinds of fault that a finding speaks of."""
    if finding.symptom == "learning rate out of range":
        is_high = finding.evidence["learning_rate"] > finding.evidence["high"]
        return ("rate too high",) if is_high else ("rate too low",)
    return SYMPTOMS[finding.symptom]


def findings_of(result):
    """What a user is told; if `fit` has failed, what was said before."""
    if not result.history:
        return result.checks
    return diagnose(
        result.history,
        gradients=result.gradients,
        activations=result.activations,
        checks=result.checks,
    )


def told(findings, kinds):
    """Whether there are findings, and how far down the first of these kinds stands."""
    ranks = [n for n, one in enumerate(findings, 1) if set(kinds_of(one)) & set(kinds)]
    first = findings[0] if findings else None
    return {
        "flagged": bool(findings),
        "rank": ranks[0] if ranks else 0,
        "first": first.symptom if first else "",
        "said": "; ".join(kinds_of(first)) if first else "",
        "findings": "; ".join(one.symptom for one in findings),
    }


def repaired(program, finding, result, seed, twin_score):
    """Make the change of a finding, alone, and train again."""
    base = BASES[program.base]
    if any(CHECKS.get(name) == value for name, value in finding.change.items()):
        is_right = set(kinds_of(finding)) & set(program.kinds) == {"labels"}
        if is_right:  # to look at the labels is what helps, and a person's work
            return {"repaired": True}
    settings = apply(
        finding.change,
        finding.layer,
        program.settings,
        base,
        seed=seed,
        history=result.history,
    )
    if settings is None:
        return {"repaired": False}
    score = run(base, settings, seed, look=False).score
    return {"repaired_score": round(score, 4), "repaired": score >= NEAR * twin_score}


def measure(program, seed, twin_score=None):
    """Return the row of a program, or of a twin, which has no kinds of fault."""
    result = run(BASES[program.base], program.settings, seed)
    findings = findings_of(result)
    row = {
        "half": program.half,
        "program": program.name,
        "base": program.base,
        "kinds": "; ".join(program.kinds),
        "seed": seed,
        "score": round(result.score, 4),
        "twin_score": twin_score,
        "least_twin_score": BASES[program.base].least_score,
        **told(findings, program.kinds),
        "change": json.dumps(findings[0].change) if findings else "",
        "repaired_score": None,
        "repaired": False,
    }
    if program.kinds and findings:
        row |= repaired(program, findings[0], result, seed, twin_score)
    fired = published(result)
    for tool, rules in RULES.items():
        kinds = {kind for rule in fired[tool] for kind in rules[rule]}
        row[f"{tool} flagged"] = bool(fired[tool])
        row[f"{tool} right"] = bool(kinds & set(program.kinds))
        row[f"{tool} rules"] = "; ".join(rule.__name__ for rule in fired[tool])
    return row


def twin_of(base):
    return Program(f"{base}: repaired", (), base, {})


# --- healthy runs of train.py

HEALTHY = ("recommended", "baseline", "batch_norm_before", "selu", "residual",
           "momentum", "adam", "exponential_scheduler", "one_cycle_scheduler",
           "dropout")  # fmt: skip
HEALTHY_SEEDS, HEALTHY_EPOCHS = 2, 8


def measure_healthy(name, seed, epochs=HEALTHY_EPOCHS, data="fashion-mnist"):
    """Train a run in a process of its own, as `train.py --diagnose`; return its row."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "train.py", name, "--seed", str(seed), "--diagnose"]
        command += ["--data", data, "--epochs", str(epochs), "--output", output]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        folder = pathlib.Path(output) / f"{name}-{seed}"
        metrics = json.loads((folder / "metrics.json").read_text())
        findings = json.loads((folder / "diagnosis.json").read_text())
    symptoms = [finding["symptom"] for finding in findings]
    return {
        "half": "healthy",
        "program": name,
        "base": metrics["data"],
        "kinds": "",
        "seed": seed,
        "score": round(metrics["validation_accuracy"], 4),
        "flagged": bool(symptoms),
        "first": symptoms[0] if symptoms else "",
        "findings": "; ".join(symptoms),
    }


# --- the picture


def confusion(rows):
    """Count for each kind of fault the kinds of which the first finding speaks.

    A program whose fault can be called two names counts under the first, and a finding
    that speaks of either is right.
    """
    rows, _ = doctor_rows(rows)
    roots = rows["kinds"].str.split("; ").str[0]
    said = rows["said"].str.split("; ").str[0].fillna("of no kind")
    said = said.where(rows["flagged"].astype(bool), "nothing")
    said = said.where(rows["rank"] != 1, roots)
    kinds = [kind for kind in KINDS if (roots == kind).any()]
    counts = pd.crosstab(roots, said)
    return counts.reindex(
        kinds, columns=[*KINDS, "of no kind", "nothing"], fill_value=0
    )


def heat_map(counts):
    """Draw the confusion: a row per kind of fault, numbers of runs, shares as blue."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots()
    values = counts.to_numpy()
    shares = values / values.sum(axis=1, keepdims=True)
    axes.imshow(shares, colormaps["Blues"], aspect="auto", vmin=0, vmax=1)
    for row, column in zip(*values.nonzero(), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        center = {"ha": "center", "va": "center", "color": color}
        axes.text(column, row, values[row, column], **center)
    axes.set_xticks(range(values.shape[1]), counts.columns, rotation=40, ha="right")
    axes.set_yticks(range(len(values)), counts.index)
    axes.set(xlabel="kind the first finding speaks of", ylabel="kind of the fault")
    axes.set_title("Runs of faulty programs no rule was tuned on; nothing: not flagged")
    return figure


# --- the command


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--half", choices=("tune", "unseen", "both"), help="of the programs")
    add("--healthy", action="store_true", help="runs of train.py on Fashion-MNIST")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the programs")
    add("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not (options.half or options.healthy):
        parser.error("nothing to do: give --half, --healthy or both")
    facts = surroundings()
    done = {}
    if options.results.exists():
        table = pd.read_csv(options.results)
        keys = zip(table["half"], table["program"], table["seed"], strict=True)
        done = dict(zip(keys, table["score"], strict=True))

    def record(row):
        append([{**row, **facts}], options.results)
        done[row["half"], row["program"], row["seed"]] = row["score"]
        print(json.dumps(row, default=str), flush=True)

    halves = ("tune", "unseen") if options.half == "both" else (options.half,)
    for seed, (name, base) in itertools.product(options.seeds, BASES.items()):
        if base.half not in halves:
            continue
        twin = twin_of(name)
        for program in [twin, *(one for one in PROGRAMS if one.base == name)]:
            if (base.half, program.name, seed) not in done:
                twin_score = done.get((base.half, twin.name, seed))
                record(measure(program, seed, twin_score))
    if options.healthy:
        for seed, name in itertools.product(range(HEALTHY_SEEDS), HEALTHY):
            if ("healthy", name, seed) not in done:
                record(measure_healthy(name, seed))
    table = pd.read_csv(options.results)
    unseen = table[(table["half"] == "unseen") & table["kinds"].notna()]
    if len(unseen):
        with whole(options.results.with_suffix(".png")) as new:
            heat_map(confusion(unseen)).savefig(new, format="png", dpi=100)


if __name__ == "__main__":
    main()
