"""What a row is, and how its contenders are run against each other."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from processes import Load, reap

# Of one core. More than this and somebody else was measured as well.
MOST_LOAD = 0.05

Medians = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """What a row must reach."""

    text: str
    # From the medians of the contenders to the number that counts.
    value: Callable[[Medians], float]
    # That number is at least this, or at most.
    bound: float
    at_least: bool = True

    def reached(self, medians: Medians) -> bool:
        """Whether it is."""
        value = self.value(medians)
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Row:
    """Contenders that do the same thing; the first one is ours."""

    key: str
    title: str
    unit: str
    # Each call sets up afresh, measures once and takes down.
    contenders: dict[str, Callable[[], float]]
    # Each call gives a digest of the bytes that its contender has delivered.
    checks: dict[str, Callable[[], str]] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    # Not more rounds than this: for what takes minutes or does not vary.
    most_rounds: int | None = None
    # Not fewer: for a difference that is smaller than what one run differs from the next.
    least_rounds: int = 1


@dataclass
class Result:
    """What has come out of a row."""

    row: Row
    samples: dict[str, list[float]]
    void: str = ""
    # Of one core, by other processes.
    load: float = 0.0

    @property
    def medians(self) -> Medians:
        """By contender."""
        return {name: statistics.median(values) for name, values in self.samples.items() if values}


def run_row(row: Row, rounds: int, tolerate_load: bool, say: Callable[[str], None]) -> Result:
    """Checks that all deliver the same bytes, then lets them take turns. A failure voids the row only."""
    result = Result(row, {name: [] for name in row.contenders})
    try:
        _run_row(result, rounds, tolerate_load, say)
    except RuntimeError as error:
        say(f"{row.key}: {error}")
        result.void = " ".join(str(error).split())
    return result


def _run_row(result: Result, rounds: int, tolerate_load: bool, say: Callable[[str], None]) -> None:
    row = result.row
    digests = {}
    for name, check in row.checks.items():
        say(f"{row.key}: checking {name}")
        digests[name] = check()
    if len(set(digests.values())) > 1:
        result.void = "checksums differ: " + ", ".join(f"{name} {digest[:12]}" for name, digest in digests.items())
        return
    load = Load()
    names = list(row.contenders)
    for number in range(max(min(rounds, row.most_rounds or rounds), row.least_rounds)):
        # Each begins in turn, so that nobody always follows the same one.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            value = row.contenders[name]()
            result.samples[name].append(value)
            say(f"{row.key}: {name}: {value:.4g} {row.unit}")
            reap()
    result.load = load.others()
    if result.load > MOST_LOAD and not tolerate_load:
        result.void = f"other processes took {result.load:.0%} of a core"
