"""The results as Markdown."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from measure import Result


def render(results: list[Result], rounds: int, root: Path, tools: dict[str, str]) -> str:
    """Both tables and what they were measured with."""
    lines = ["# Benchmark", "", "Made by `contrib/bench/run`; what the rows are is said in `rows.py` and what it imports.", "", *_setting(rounds, root, tools), ""]
    lines += ["## Medians", "", "| row | what | contender | median | from | to | loopmount is better by |", "| --- | --- | --- | --: | --: | --: | --: |"]
    for result in results:
        lines += _contenders(result)
    lines += ["", "## Goals", "", "| row | goal | measured | |", "| --- | --- | --: | --- |"]
    for result in results:
        for goal in result.row.goals:
            lines.append(_goal(result, goal))
    notes = [f"* {result.row.key}: {note}" for result in results if (note := _note(result))]
    if notes:
        lines += ["", "## Notes", "", *notes]
    return "\n".join(lines) + "\n"


def _setting(rounds: int, root: Path, tools: dict[str, str]) -> list[str]:
    cpu = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    version = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return [
        f"* {datetime.now(UTC):%Y-%m-%d}, loopmount at {version.stdout.strip()}, medians of {rounds}",
        f"* {os.cpu_count()} cores ({cpu}), Linux {platform.release()}",
        "* " + ", ".join(f"{name} {version}" for name, version in tools.items()),
    ]


def _contenders(result: Result) -> list[str]:
    row, medians = result.row, result.medians
    if not medians:
        return [f"| {row.key} | {row.title} | void | | | | |"]
    ours = next(iter(row.contenders))
    lines = []
    for number, (name, median) in enumerate(medians.items()):
        values = result.samples[name]
        # More is better for rates, less for everything else.
        better, worse = (medians[ours], median) if row.unit.endswith("/s") else (median, medians[ours])
        head = f"| {row.key} | {row.title} " if number == 0 else "| | "
        # Some need nothing at all.
        ratio = "" if name == ours or worse == 0 else f"{better / worse:.2f}"
        lines.append(f"{head}| {name} | {_number(median)} {row.unit} | {_number(min(values))} | {_number(max(values))} | {ratio} |")
    return lines


def _goal(result: Result, goal) -> str:
    medians = result.medians
    if result.void or not medians:
        return f"| {result.row.key} | {goal.text} | | void |"
    verdict = "reached" if goal.reached(medians) else "**missed**"
    return f"| {result.row.key} | {goal.text} | {_number(goal.value(medians))} | {verdict} |"


def _note(result: Result) -> str:
    if result.void:
        return f"void: {result.void}"
    if result.load > 0.05:
        return f"measured although other processes took {result.load:.0%} of a core"
    return ""


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
