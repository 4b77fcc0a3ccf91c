"""Write the tables of README.md from train.py and the results: make table."""

import pathlib
import re
import sys

import pandas as pd

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402

README = ROOT / "README.md"
RUNS = ROOT / "benchmarks" / "results" / "runs.csv"


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
    facts = [", ".join(rows[key].unique()) for key in ("machine", "versions", "commit")]
    lines += ["", "{}; {}; commit {}.".format(*facts)]
    return "\n".join(lines)


def mean_and_deviation(values, digits):
    """The mean ± the sample deviation."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def list_of_runs():
    """Every run of train.py with its line."""
    lines = ["| run | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {run.build.__doc__} |" for name, run in train.RUNS.items()]
    return "\n".join(lines)


def rendered(readme):
    """The README's text with its tables as the code and the results say."""
    tables = {"results": runs_table(pd.read_csv(RUNS)), "list of runs": list_of_runs()}
    for name, table in tables.items():
        readme = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)",
            lambda match, table=table: f"{match[1]}{table}\n{match[2]}",
            readme,
            flags=re.DOTALL,
        )
    return readme


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
