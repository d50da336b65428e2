"""Row (k): compressed images and archives by all who can show them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import processes
from images import MIB
from measure import Row
from processes import run
from stacks import has_filter
from uses import OURS, Uses, warm

RATARMOUNT, THEIRS = "ratarmount", "nbdkit + nbdfuse"


@dataclass(frozen=True)
class Run:
    """What one contender took."""

    # Seconds from the command to the first byte and to the last one.
    first: float
    all: float
    # The most memory, and what is on disk after all was read: index, cache, temporary files. Bytes.
    memory: int
    disk: int


@dataclass(frozen=True)
class Peers(Uses):
    """Mounts, reads the first byte, then everything, as the ordinary user."""

    _runs: dict[tuple[str, str], list[Run]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The same runs seen four ways."""
        inside = self.images.small.name
        rows = []
        for key, image, filters in (
            ("gzip", self.images.small_gz, ("gzip",)),
            ("bzip2", self.images.small_bz2, ("bzip2",)),
            ("tar", self.images.small_tar, ("tar", f"tar-entry={inside}")),
        ):
            stacks = {
                OURS: lambda kept, image=image: self.bench.loopmount_file(str(image), True, kept=kept),
                RATARMOUNT: lambda kept, image=image: self.bench.ratarmount_file(image, inside, True, kept),
            }
            note = f" (this nbdkit has no filter {key})"
            if has_filter(key):
                stacks[THEIRS] = lambda kept, image=image, filters=filters: self.bench.nbdkit_file(
                    ["file", str(image)], True, *filters, kept=kept
                )
                note = ""
            rows += self._of(key, image, stacks, f"a disk of 256 MiB, {key}{note}: ")
        return rows

    def _of(self, key: str, image: Path, stacks: dict[str, Callable], title: str) -> list[Row]:
        measured = {name: (lambda name=name, stack=stack: self._measure((key, name), image, stack).first) for name, stack in stacks.items()}
        checks = {name: self._digest(stack) for name, stack in stacks.items()}
        rows = [Row(f"k.{key}.first", f"{title}from the command to the first byte", "s", measured, checks)]
        picked: tuple[tuple[str, str, str, Callable[[Run], float]], ...] = (
            ("all", "from the command to the last byte", "s", lambda run: run.all),
            ("memory", "peak RSS", "MiB", lambda run: run.memory / MIB),
            ("disk", "on disk after that", "MiB", lambda run: run.disk / MIB),
        )
        for part, what, unit, value in picked:
            contenders = {
                name: (lambda name=name, stack=stack, value=value: statistics.median(map(value, self._all_runs((key, name), image, stack))))
                for name, stack in stacks.items()
            }
            # The medians of all runs.
            rows.append(Row(f"k.{key}.{part}", title + what, unit, contenders, most_rounds=1))
        return rows

    def _all_runs(self, which: tuple[str, str], image: Path, stack) -> list[Run]:
        if which not in self._runs:
            self._measure(which, image, stack)
        return self._runs[which]

    def _measure(self, which: tuple[str, str], image: Path, stack) -> Run:
        warm(image)
        with self.bench.kept(True) as kept:
            before = set(processes.descendants())
            begin = time.monotonic()
            with stack(kept) as target:
                run(self.bench.command(["head", "-c", "1", str(target)], True))
                first = time.monotonic() - begin
                self._read_all(target, True)
                seconds = time.monotonic() - begin
                behind = [pid for pid in processes.descendants() if pid not in before]
                memory = processes.memory(behind, "VmHWM")
                measured = Run(first, seconds, memory, processes.files_in(kept) + processes.unlinked(behind))
        self._runs.setdefault(which, []).append(measured)
        return measured

    def _digest(self, stack) -> Callable[[], str]:
        def check() -> str:
            with self.bench.kept(True) as kept:
                return self._digest_of_file(lambda: stack(kept), True)()

        return check
