"""Write the tables of README.md from benchmarks/results: python benchmarks/table.py."""

import pathlib
import re

import pandas as pd

ROOT = pathlib.Path(__file__).parent.parent
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
                for score in ("accuracy", "nll", "calibration_error")
            ]
            seconds = mean_and_deviation(group["training_seconds"], digits=0)
            cells += ["the same" if prefix else seconds, str(len(group))]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    machine, versions = rows["machine"].iloc[-1], rows["versions"].iloc[-1]
    commits = ", ".join(sorted(set(rows["commit"].astype(str))))
    lines += ["", f"{machine}; {versions}; commit {commits}."]
    return "\n".join(lines)


def mean_and_deviation(values, digits):
    """The mean ± the sample deviation."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def rendered(readme):
    """The README's text with its tables as the results say."""
    table = runs_table(pd.read_csv(RUNS))
    return re.sub(
        r"(<!-- runs -->\n).*?(\n<!-- end of runs -->)",
        lambda match: match[1] + table + match[2],
        readme,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
