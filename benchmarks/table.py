"""Write the tables of all pages from train.py and the results: make table."""

import math
import re

import chapter_table
import chinese
import devices
import mc_dropout_speed
import pandas as pd
import scipy.stats
import structures
import training_speed
import transfer
from record import ROOT

import train

# The pages with tables, and what is done to these there.
PAGES = {
    ROOT / "README.md": str,
    ROOT / "README.zh-CN.md": chinese.translated,
    ROOT / "docs" / "results.md": str,
    ROOT / "docs" / "runs.md": str,
    ROOT / "docs" / "distributed.md": str,
}
RESULTS = ROOT / "benchmarks" / "results"
# Of the columns of chapter.csv, by their prefix.
CHAPTER_IMAGES = {
    "val_": "validation",
    "test_": "test",
    "mc_test_": "test, MC Dropout",
}


def runs_table(rows):
    """Mean and deviation over the seeds of each run, in Markdown."""
    lines = [
        "| run | test accuracy | negative log likelihood | calibration error "
        "| training, s | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name, group in rows.groupby("run", sort=False):
        kinds = [(name, "")]
        if "mc_accuracy" in group and group["mc_accuracy"].notna().all():
            kinds.append((f"{name}, MC Dropout", "mc_"))
        for label, prefix in kinds:
            cells = [
                mean_and_deviation(group[prefix + score], digits=4)
                for score in (
                    "accuracy",
                    "negative_log_likelihood",
                    "calibration_error",
                )
            ]
            seconds = mean_and_deviation(group["training_seconds"], digits=0)
            cells += ["the same" if prefix else seconds, str(len(group))]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured_with(rows)])


def speed_table(rows):
    """Seconds of each way to predict, a Markdown table for each machine and backend."""
    parts = []
    for _, group in rows.groupby(["machine", "backend"], sort=False):
        lines = [
            "| model | inputs | way | samples | seconds, median (from to) "
            "| times as fast as the book's loop |",
            "|---|---|---|---|---|---|",
        ]
        for row in group.itertuples():
            samples = str(row.samples)
            if row.measured_samples < row.samples:
                samples += f", scaled from {row.measured_samples}"
            median, low, high = (
                two_digits(seconds)
                for seconds in (row.seconds_median, row.seconds_min, row.seconds_max)
            )
            cells = [f"`{row.model}`", f"{row.inputs:,}", row.way, samples]
            cells += [f"{median} ({low} to {high})", two_digits(1 / row.ratio_to_book)]
            lines.append(f"| {' | '.join(cells)} |")
        repeats = " or ".join(str(number) for number in group["repeats"].unique())
        parts.append("\n".join(lines))
        parts.append(f"{repeats} repeats; {measured_with(group)}")
    descriptions = [
        f"`{name}`: {mc_dropout_speed.MODELS[name].build.__doc__}"
        for name in rows["model"].unique()
    ]
    return "\n\n".join([*parts, f"{'; '.join(descriptions)}."])


def uncertainty_table(rows):
    """Two Markdown tables: how good the predictions are, and what their scores find."""
    quality = {  # column -> whether more is better
        "accuracy": True,
        "negative log likelihood": False,
        "Brier score": False,
        "calibration error": False,
        "accuracy at coverage 0.8": True,
    }
    scores = ("confidence", "entropy", "mutual information")
    found = [
        name[: -len(" by entropy")] for name in rows if name.endswith("by entropy")
    ]
    first = [f"| run | prediction | {' | '.join(quality)} | temperature |"]
    first.append("|---" * (3 + len(quality)) + "|")
    second = [f"| run | prediction | ranked by | {' | '.join(found)} |"]
    second.append("|---" * (3 + len(found)) + "|")
    for run, group in rows.groupby("run", sort=False):
        kinds = {k: part.set_index("seed") for k, part in group.groupby("kind", sort=0)}
        columns = [
            best_in_bold({k: part[name] for k, part in kinds.items()}, is_high, 4)
            for name, is_high in quality.items()
        ]
        for kind, part in kinds.items():
            cells = [run, kind, *(column[kind] for column in columns)]
            cells.append(mean_and_deviation(part["temperature"], digits=2))
            first.append(f"| {' | '.join(cells)} |")
        ways = {
            (kind, score): part
            for kind, part in kinds.items()
            for score in scores
            if part[f"errors by {score}"].notna().all()
        }
        columns = [
            best_in_bold({w: ways[w][f"{name} by {w[1]}"] for w in ways}, True, 3)
            for name in found
        ]
        for way in ways:
            cells = [run, *way, *(column[way] for column in columns)]
            second.append(f"| {' | '.join(cells)} |")
    seeds = (
        f"{rows['seed'].nunique()} seeds; bold: in its run no other was better on any."
    )
    return "\n".join([*first, "", *second, "", f"{seeds} {measured_with(rows)}"])


def step_table(rows):
    """What schedules, callbacks and clipping add to a step, in Markdown."""
    parts = []
    for _, group in rows.groupby(["machine", "backend", "commit"], sort=False):
        lines = ["| added to plain SGD | microseconds a step | share of the step |"]
        lines.append("|---|---|---|")
        for row in group.itertuples():
            if row.name != training_speed.PLAIN:
                cells = [row.name, f"{row.microseconds:.0f}"]
                cells[1] += f" ({row.low:.0f} to {row.high:.0f})"
                cells.append(f"{100 * row.share_of_step:.1f} %")
                lines.append(f"| {' | '.join(cells)} |")
        plain = group.loc[group["name"] == training_speed.PLAIN, "step_microseconds"]
        step = " or ".join(f"{microseconds:.0f}" for microseconds in plain)
        facts = (
            f"Plain step: {step} microseconds. {group['rounds'].iloc[0]} rounds of "
            f"{group['steps'].iloc[0]} steps, median with 95 % interval; "
        )
        parts += ["\n".join(lines), facts + measured_with(group)]
    return "\n\n".join(parts)


def epoch_table(rows):
    """Seconds of an epoch, a row for each way to train, in Markdown."""
    lines = [
        "| process | network | way | seconds an epoch | times as fast as plain `fit` "
        "on TensorFlow (95 % interval) |",
        "|---|---|---|---|---|",
    ]
    for row in rows.itertuples():
        way = row.way + ", scaled from a tenth" * (row.share_measured < 1)
        ratio, low, high = map(two_digits, (row.ratio, row.low, row.high))
        if row.ratio != 1:
            ratio += f" ({low} to {high})"
        cells = [row.process, row.network, way, two_digits(row.seconds), ratio]
        lines.append(f"| {' | '.join(cells)} |")
    rounds = f"{rows['rounds'].iloc[0]} rounds, medians; "
    return "\n".join([*lines, "", rounds + measured_with(rows)])


def epoch_runs_tables(rows):
    """Validation accuracy and seconds of whole runs over seeds, in Markdown."""
    parts = []
    for task, group in rows.groupby("task", sort=False):
        titles = ["process", "way", "validation accuracy", "less that of the first"]
        is_race = task == "race"
        titles += ["seconds of `fit`", "times as fast, median"] * is_race
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        first = None
        for names, runs in group.groupby(["process", "way"], sort=False):
            runs = runs.set_index("seed")
            cells = [*names, mean_and_deviation(runs["val_accuracy"], digits=4)]
            if first is None:
                first = runs
                cells.append("")
            else:
                added = runs["val_accuracy"] - first["val_accuracy"]
                cells.append(mean_and_deviation(added, digits=4))
            if is_race:
                cells.append(mean_and_deviation(runs["seconds"], digits=0))
                ratio = (first["seconds"] / runs["seconds"]).median()
                cells.append("1" if first is runs else two_digits(ratio))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
        parts.append("\n".join(lines))
    seeds = f"{rows['seed'].nunique()} seeds; "
    return "\n\n".join([*parts, seeds + measured_with(rows)])


def resume_table(rows):
    """What keeping the state adds to an epoch, in Markdown."""
    lines = ["| model | megabytes | way | milliseconds an epoch, median (from to) |"]
    lines.append("|---|---|---|---|")
    for row in rows.itertuples():
        times = f"{row.milliseconds:.0f} ({row.fastest:.0f} to {row.slowest:.0f})"
        lines.append(f"| {row.model} | {row.megabytes:.1f} | {row.way} | {times} |")
    epochs = f"{rows['epochs'].iloc[0]} epochs; "
    return "\n".join([*lines, "", epochs + measured_with(rows)])


def devices_table(rows):
    """By how much a run on two devices differs from the same on one, in Markdown."""
    rows = rows.assign(why_not=rows["why_not"].fillna("nothing"))
    lines = [
        "| backend | precision | what makes it another training | runs "
        "| largest difference of a weight | of a loss, relative |",
        "|---|---|---|---|---|---|",
    ]
    groups = rows.groupby(["why_not", "floatx", "backend"], sort=False)
    for (why_not, floatx, backend), group in groups:
        cells = [backend, floatx, why_not, str(len(group))]
        for name in ("weight_difference", "loss_difference"):
            largest = group.loc[group[name].idxmax()]
            cells.append(f"{largest[name]:.1e} (`{largest['run']}`)")
        lines.append(f"| {' | '.join(cells)} |")
    steps = f"{rows['steps'].min()} to {rows['steps'].max()} steps each; "
    return "\n".join([*lines, "", steps + measured_with(rows)])


def device_steps_table(rows):
    """Times of a step on one device and on two that took turns, in Markdown."""
    lines = [
        "| backend | network | batch | one device, ms | two, ms | modelled, ms "
        "| two / one, median (quartiles) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows.itertuples():
        times = row.milliseconds_of_one, row.milliseconds, row.modelled_milliseconds
        cells = [row.backend, row.network, str(row.batch_size), *map(two_digits, times)]
        quartiles = map(two_digits, (row.lower_quartile, row.upper_quartile))
        cells.append(f"{two_digits(row.ratio)} ({' to '.join(quartiles)})")
        lines.append(f"| {' | '.join(cells)} |")
    counts = f"{rows['epochs'].iloc[0]} epochs of {rows['steps'].iloc[0]} steps each; "
    return "\n".join([*lines, "", counts + measured_with(rows)])


def finder_table(rows):
    """The finder's suggestions over the seeds, in Markdown."""
    columns = list(rows.columns)
    rules = columns[columns.index("seed") + 1 : columns.index("steps")]
    lines = ["| rule | median rate | lowest | highest |", "|---|---|---|---|"]
    for rule in rules:
        of_seeds = rows[rule]
        cells = [of_seeds.median(), of_seeds.min(), of_seeds.max()]
        cells = [f"{rate:.2g}" for rate in cells]
        lines.append(f"| {rule.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len(rows)} seeds; {measured_with(rows)}"])


def signals_table(rows):
    """The gradient at the first hidden layer over that at the last, in Markdown."""
    rows = rows[~rows["network"].isin(["SimpleRNN", "LSTM"])]
    names = list(rows["weights"].unique())
    lines = [
        f"| hidden layers | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for network, group in rows[rows["place"] == 1].groupby("network", sort=False):
        ratios = group.set_index("weights")["gradient median"].to_dict()
        cells = [
            f"**{ratio:.2g}**" if 0.1 <= ratio <= 10 else f"{ratio:.2g}"
            for ratio in ratios.values()
        ]
        by_name = dict(zip(ratios, cells, strict=True))
        lines.append(f"| {network} | {' | '.join(by_name.get(n, '') for n in names)} |")
    seeds = f"Bold: from 0.1 to 10. Median of {rows['seeds'].iloc[0]} seeds; "
    return "\n".join([*lines, "", seeds + measured_with(rows)])


def cases_table(rows):
    """Cases, and whether Keras's way and this collection's do what they promise."""
    lines = ["| case | measured | expected | Keras | here |", "|---|---|---|---|---|"]
    for row in rows.itertuples():
        cells = [row.case, row.measure, row.expected]
        for value, holds in ((row.keras, row.keras_holds), (row.ours, row.ours_holds)):
            cells.append(f"{value}" if holds else f"{value} ✗")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", f"✗: not as expected. {measured_with(rows)}"])


def transfer_table(rows):
    """Errors on the book's task, from scratch and with reused layers, in Markdown."""
    lines = [
        "| rate | way | test errors, % | errors from scratch / errors, median "
        "(95 % interval) | seeds with fewer errors |",
        "|---|---|---|---|---|",
        "| the book's record | from scratch | 8.15 | 1 | |",
        "| the book's record | reused | 6.15 | 1.33 | 1 of 1 |",
    ]
    for choice, group in rows.groupby("choice", sort=False):
        errors = group.pivot(index="seed", columns="way", values="test_error")
        for way in group["way"].unique():
            ratios = (errors[transfer.SCRATCH] / errors[way]).sort_values().to_numpy()
            cells = [choice, way, mean_and_deviation(100 * errors[way], digits=2)]
            if way == transfer.SCRATCH:
                cells += ["1", ""]
            else:
                median, low, high = training_speed.median_and_interval(ratios)
                cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
                cells.append(f"{(ratios > 1).sum()} of {len(ratios)}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured_with(rows)])


def structures_table(rows):
    """Networks at their best rates, and descents, in Markdown."""
    setting = [*structures.Setting._fields, "rate"]
    scores = ["loss", "accuracy", "fit_accuracy", "val_accuracy"]
    lines = [
        "| demonstration | network | layers | units | batch | images | rate | epochs "
        "| training loss | training accuracy | the same as `fit` prints it "
        "| validation accuracy |"
    ]
    lines.append("|---" * 12 + "|")
    trained = structures.at_best_rate(rows[rows["demonstration"] != "contours"])
    last = trained.groupby([*setting, "seed"], sort=False).tail(1)
    for names, runs in last.groupby([*setting, "epochs"], sort=False):
        cells = [f"{name:,}" if isinstance(name, int) else str(name) for name in names]
        cells += [mean_and_deviation(runs[score], digits=3) for score in scores]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| inputs | condition number | steps |", "|---|---|---|"]
    descents = rows[rows["demonstration"] == "contours"]
    for name, runs in descents.groupby("variant", sort=False):
        numbers = mean_and_deviation(runs["condition_number"], digits=1)
        steps = mean_and_deviation(runs["steps"], digits=0)
        lines.append(f"| {name} | {numbers} | {steps} |")
    seeds = f"{rows['seed'].nunique()} seeds; "
    return "\n".join([*lines, "", seeds + measured_with(rows)])


def chapter_rows(rows):
    """The notebooks' rows: what they have recorded, and what came out again."""
    lines = [
        "| row | set-up | images | accuracy, recorded | measured | in the interval "
        "| loss, recorded | measured | in the interval |"
    ]
    lines.append("|---" * 9 + "|")
    counts = {"accuracy": [], "loss": []}
    for name, row in chapter_table.ROWS.items():
        runs = rows[rows["run"] == name]
        if row.beside or "rate_of_lowest_loss" in row.recorded or not len(runs):
            continue
        for prefix, images in CHAPTER_IMAGES.items():
            if f"{prefix}accuracy" not in row.recorded:
                continue
            cells = [f"`{name}`", row.run.__doc__, images]
            for measure, flags in counts.items():
                recorded = row.recorded.get(prefix + measure)
                if recorded is None:
                    cells += ["", "", ""]
                    continue
                values = runs[prefix + measure]
                low, high = prediction_interval(values)
                is_inside = low <= recorded <= high
                if not row.remark:
                    flags.append(is_inside)
                digits = f"{recorded:.4f}" + (" †" if row.remark else "")
                cells += [digits, mean_and_deviation(values, 4)]
                cells.append("yes" if is_inside else f"**no**: {low:.4f} to {high:.4f}")
            lines.append(f"| {' | '.join(cells)} |")
    remarks = [
        f"`{name}`: {row.remark}"
        for name, row in chapter_table.ROWS.items()
        if row.remark and "rate_of_lowest_loss" not in row.recorded
    ]
    inside = " and ".join(
        f"{sum(flags)} of {len(flags)} for the {measure}"
        for measure, flags in counts.items()
    )
    book = rows[~rows["run"].map(is_ours)]
    facts = f"{number_of_seeds(book)}; {measured_with(book)}"
    return "\n\n".join(
        [
            "\n".join(lines),
            f"† Does not belong to the code above it. {'; '.join(remarks)}.",
            f"Inside, of those that do: {inside}. {facts}",
        ]
    )


def chapter_ours(rows):
    """Our networks beside the notebooks', in Markdown."""
    lines = [
        "| family | our row | recipes | beside | recorded | its set-up, measured "
        "| ours | gain, 95 % interval |"
    ]
    lines.append("|---" * 8 + "|")
    for name, row in chapter_table.ROWS.items():
        ours = rows[rows["run"] == name]
        if not row.beside or not len(ours):
            continue
        beside = chapter_table.ROWS[row.beside]
        theirs = rows[rows["run"] == row.beside]
        for measure, recorded in beside.recorded.items():
            if not measure.endswith("accuracy"):
                continue
            cells = [row.family, f"`{name}`", row.run.__doc__, f"`{row.beside}`"]
            cells.append(
                f"{CHAPTER_IMAGES[measure.removesuffix('accuracy')]}: {recorded:.4f}"
            )
            cells.append(mean_and_deviation(theirs[measure], 4))
            cells.append(mean_and_deviation(ours[measure], 4))
            low, high = gain_interval(ours[measure], theirs[measure])
            cells.append(f"{low:+.4f} to {high:+.4f}")
            lines.append(f"| {' | '.join(cells)} |")
    ours = rows[rows["run"].map(is_ours)]
    facts = f"{number_of_seeds(ours)}; {measured_with(ours)}"
    return "\n".join([*lines, "", facts])


def is_ours(name):
    """Whether a row of the chapter's csv is one beside the book's."""
    return bool(chapter_table.ROWS[name].beside)


def number_of_seeds(rows):
    """How many seeds each row has, or from how few to how many."""
    counts = rows.groupby("run").size()
    few, many = counts.min(), counts.max()
    return f"{few} seeds" if few == many else f"{few} to {many} seeds"


def gain_interval(ours, theirs):
    """Where the difference of the means lies with 95 % confidence, after Welch."""
    # Not SciPy's own: it warns of equal values, which two seeds may well have.
    squared_errors = [values.sem() ** 2 for values in (ours, theirs)]
    freedom = sum(squared_errors) ** 2 / sum(
        error**2 / (len(values) - 1)
        for error, values in zip(squared_errors, (ours, theirs), strict=True)
    )
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(sum(squared_errors))
    difference = ours.mean() - theirs.mean()
    return difference - half, difference + half


def prediction_interval(values):
    """Where one more value lies with 95 % probability, if they are normal."""
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    half = quantile * values.std() * math.sqrt(1 + 1 / len(values))
    return values.mean() - half, values.mean() + half


def doctor_table(rows):
    """How faulty programs, their repaired twins and healthy runs are diagnosed."""
    rows, harmless = doctor_rows(rows)
    faulty, sound = rows[rows["kinds"].notna()], rows[rows["kinds"].isna()]
    unseen, twins = (part[part["half"] == "unseen"] for part in (faulty, sound))
    parts = []
    if len(unseen):
        parts.append(doctor_aims(unseen, twins))
    lines = [
        "| fault | programs | flagged | root cause named first "
        "| flagged runs that the first advice repairs | named first in other runs |",
        "|---|---|---|---|---|---|",
    ]
    roots = unseen["kinds"].str.split("; ").str[0]
    for kind, group in unseen.groupby(roots, sort=False):
        cells = [kind, *doctor_shares(group), mistaken(group)]
        lines.append(f"| {' | '.join(cells)} |")
    names = {"unseen": "all, no rule was tuned on", "tune": "all, tuned on"}
    for half, name in names.items():
        group = faulty[faulty["half"] == half]
        if len(group):
            cells = [f"**{name}**", *doctor_shares(group), ""]
            lines.append(f"| {' | '.join(cells)} |")
    parts.append("\n".join(lines))
    names = {"unseen": "repaired twins of programs no rule was tuned on"}
    names |= {"tune": "repaired twins of those tuned on"}
    names |= {"healthy": "healthy runs of `train.py` on Fashion-MNIST"}
    lines = ["| sound | left alone | false alarms |", "|---|---|---|"]
    for half, name in names.items():
        group = sound[sound["half"] == half]
        if len(group):
            alarms = group["first"].dropna().value_counts()
            named = ", ".join(
                f"{symptom} {number}" for symptom, number in alarms.items()
            )
            silent = share(~group["flagged"].astype(bool))
            lines.append(f"| {name} | {silent} | {named} |")
    parts.append("\n".join(lines))
    seeds = faulty.groupby("half", sort=False)["seed"].nunique()
    facts = ", ".join(f"{seeds[half]} of the half {half}" for half in seeds.index)
    facts = f"Seeds: {facts}. {measured_with(rows)}"
    if harmless:
        facts += f" Left out, as no worse than a sound twin: {', '.join(harmless)}."
    return "\n\n".join([*parts, facts])


def doctor_rows(rows):
    """Rows without the programs that do no harm or whose twin is not sound, and those.

    By the means over seeds: at least nine tenths of the twin's score, or a twin below
    what its data set allows.
    """
    scores = ["score", "twin_score", "least_twin_score"]
    means = rows[rows["kinds"].notna()].groupby("program")[scores].mean()
    is_fault = means["score"] < 0.9 * means["twin_score"]
    is_sound = means["twin_score"] >= means["least_twin_score"]
    harmless = means.index[~(is_fault & is_sound)]
    return rows[~rows["program"].isin(harmless)], list(harmless)


def doctor_aims(faulty, twins):
    """What was to be reached beside what was, and what the rules of others reach."""
    tools = [
        name.removesuffix(" flagged") for name in faulty if name.endswith(" flagged")
    ]
    flagged = faulty["flagged"].astype(bool)

    lines = [
        f"| runs no rule was tuned on | aim | `diagnose` | {' | '.join(tools)} |",
        "|---|---|---|" + "---|" * len(tools),
    ]
    of_faulty = [percent(faulty[f"{tool} flagged"]) for tool in tools]
    of_twins = [percent(~twins[f"{tool} flagged"].astype(bool)) for tool in tools]
    right = [percent(faulty[f"{tool} right"]) for tool in tools]
    none = [""] * len(tools)
    for name, aim, flags, others in (
        ("faulty: flagged", "95 %", flagged, of_faulty),
        ("repaired: left alone", "95 %", ~twins["flagged"].astype(bool), of_twins),
        ("root cause among what is said", "", faulty["rank"] > 0, right),
        ("root cause said first", "70 %", faulty["rank"] == 1, none),
        ("first advice, alone, repairs", "80 %", faulty["repaired"][flagged], none),
    ):
        lines.append(f"| {' | '.join([name, aim, share(flags), *others])} |")
    return "\n".join(lines)


def doctor_shares(group):
    """Programs, and of their runs those flagged, named and repaired."""
    flagged = group["flagged"].astype(bool)
    cells = [str(group["program"].nunique()), share(flagged), share(group["rank"] == 1)]
    return [*cells, share(group["repaired"][flagged].astype(bool))]


def mistaken(group):
    """What was said first where it was not the root cause, and how often."""
    others = group[group["rank"] != 1]
    said = others["first"].fillna("nothing").value_counts()
    return ", ".join(f"{symptom} {number}" for symptom, number in said.items())


def share(flags):
    """How many of the flags are set, in per cent and in numbers."""
    if not len(flags):
        return ""
    return f"{percent(flags)} ({flags.astype(bool).sum()} of {len(flags)})"


def percent(flags):
    return f"{100 * flags.astype(bool).mean():.0f} %"


def best_in_bold(values_by_name, more_is_better, digits):
    """The mean ± deviation of each name; bold if no other is better on any seed."""
    table = pd.DataFrame(values_by_name)
    best = table.max(axis=1) if more_is_better else table.min(axis=1)
    return {
        name: f"**{text}**" if values.eq(best).all() else text
        for name, values in table.items()
        for text in [mean_and_deviation(values, digits)]
    }


def measured_with(rows):
    """Machine, versions and commit of the rows."""
    machines, commits = (", ".join(rows[key].unique()) for key in ("machine", "commit"))
    versions = dict.fromkeys(", ".join(rows["versions"].unique()).split(", "))
    return f"{machines}; {', '.join(versions)}; commit {commits}."


def two_digits(number):
    """The number with two significant digits or as many as it has before the point."""
    rounded = float(f"{number:.2g}")  # 9.99 is 10, not 10.0
    places = max(0, 1 - math.floor(math.log10(rounded)))
    return f"{number:.{places}f}"


def mean_and_deviation(values, digits):
    """The mean ± the sample deviation."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def list_of_runs():
    """Every run of train.py with its line."""
    lines = ["| run | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {run.description} |" for name, run in train.RUNS.items()]
    return "\n".join(lines)


def versions_table(rows):
    """What the quick tests said with each set of versions."""
    heads = "Python", "backend", "versions", "passed", "failed", "known to fail"
    names = "python", "backend", "versions", "passed", "failed", "expected_to_fail"
    lines = [heads, ["---"] * 6, *rows[list(names)].astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# Name -> the file of results, and what makes a table of its rows.
TABLES = {
    "results": ("runs.csv", runs_table),
    "mc dropout speed": ("mc_dropout_speed.csv", speed_table),
    "uncertainty": ("uncertainty.csv", uncertainty_table),
    "signals": ("signals.csv", signals_table),
    "training speed": ("training_speed.csv", step_table),
    "epoch speed": ("epoch_speed.csv", epoch_table),
    "epoch runs": ("epoch_runs.csv", epoch_runs_tables),
    "resume cost": ("resume_cost.csv", resume_table),
    "devices": ("devices.csv", devices_table),
    "device steps": ("devices_steps.csv", device_steps_table),
    "learning-rate finder": ("lr_finder.csv", finder_table),
    "clipping cases": ("clipping_cases.csv", cases_table),
    "regularization cases": ("regularization_cases.csv", cases_table),
    "doctor cases": ("doctor_cases.csv", doctor_table),
    "structures": ("structures.csv", structures_table),
    "transfer": ("transfer.csv", transfer_table),
    "chapter": ("chapter.csv", chapter_rows),
    "beside the chapter": ("chapter.csv", chapter_ours),
    "versions": ("versions.csv", versions_table),
}
WITHOUT_RESULTS = {"list of runs": list_of_runs, "modelled steps": devices.modelled}


def rendered(page, translate=str):
    """The page's text with its tables as the code and the results say."""

    def block(match):
        begin, name, old, end = match.groups()
        if name in WITHOUT_RESULTS:
            return f"{begin}{WITHOUT_RESULTS[name]()}\n{end}"
        file, render = TABLES[name]
        if not (RESULTS / file).exists():
            return begin + old + end
        # 4e72448 is a commit, not a number.
        rows = pd.read_csv(RESULTS / file, dtype={"commit": str})
        return f"{begin}{translate(render(rows))}\n{end}"

    blocks = r"(<!-- (.+?) -->\n)(.*?)(<!-- end of \2 -->)"
    return re.sub(blocks, block, page, flags=re.DOTALL)


if __name__ == "__main__":
    for path, translate in PAGES.items():
        text = rendered(path.read_text(encoding="utf-8"), translate)
        path.write_text(text, encoding="utf-8", newline="\n")
