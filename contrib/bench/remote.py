"""Row (e): an image behind a slow web server."""

import contextlib
import functools
import hashlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from images import MIB, PARTITION_AT, Images
from measure import Goal, Row
from processes import daemon, run
from stacks import Bench

SERVER = str(Path(__file__).with_name("slow_http.py"))
DELAY_MS = 30
FILES = 100
# Longer ones would make this a row about throughput.
LONGEST_FILE = MIB
OURS, THEIRS = "loopmount", "nbdkit curl + xz"
BLOCK_OF_FS = 4096


@dataclass(frozen=True)
class Run:
    """What one contender took."""

    seconds: float
    requests: int
    bytes: int
    # Bytes that the kernel's file system asked its loop device for.
    asked: int


@dataclass
class Remote:
    """Mounts over HTTP and reads files spread over the tree."""

    bench: Bench
    images: Images
    # The last run of each contender.
    _runs: dict[str, Run] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The same runs seen three ways; requests and bytes are those of the last one."""
        name = self.images.multi.name
        stacks = {
            OURS: lambda url: self.bench.loopmount_tree(f"{url}/{name}", False),
            THEIRS: lambda url: self.bench.nbdkit_tree(["curl", f"{url}/{name}"], False, "xz"),
        }
        pick: dict[str, tuple[str, Callable[[Run], float], tuple[Goal, ...]]] = {
            "time": ("s", lambda run: run.seconds, (Goal("under a third of nbdkit's time", lambda m: m[OURS] / m[THEIRS], 1 / 3, False),)),
            "requests": ("", lambda run: run.requests, (Goal("at least 3 times fewer than nbdkit", lambda m: m[THEIRS] / m[OURS], 3),)),
            "bytes": ("MiB", lambda run: run.bytes / MIB, (Goal("at most 1.3 times the xz blocks needed", self._of_needed, 1.3, False),)),
        }
        title = f"mount over http with {DELAY_MS} ms per request and read {FILES} files, as root: "
        rows = []
        for key, (unit, value, goals) in pick.items():
            if key == "time":
                contenders = {name: (lambda name=name, stack=stack: self.measure(name, stack)[0].seconds) for name, stack in stacks.items()}
                checks = {name: (lambda name=name, stack=stack: self.measure(name, stack)[1]) for name, stack in stacks.items()}
                most = None
            else:
                contenders = {name: (lambda name=name, stack=stack, value=value: value(self.last(name, stack))) for name, stack in stacks.items()}
                checks, most = {}, 1
            rows.append(Row(f"e.{key}", title + key, unit, contenders, checks, goals, most))
        return rows

    def last(self, name: str, stack, known: bool = False) -> Run:
        """The last run of a contender, or its first one."""
        return self._runs.get(name) or self.measure(name, stack, known)[0]

    def measure(self, name: str, stack, known: bool = False) -> tuple[Run, str]:
        """One run, and the digest of what it read; with `known` the second one from the same server."""
        # Worked out before anything is timed, while the work folder is there.
        _ = self.places
        with self._served() as url:
            if known:
                self._read(url, stack)
            self._runs[name], digest = self._read(url, stack)
        return self._runs[name], digest

    def _read(self, url: str, stack) -> tuple[Run, str]:
        counts = lambda: map(int, urllib.request.urlopen(f"{url}/.counts").read().split())
        requests_before, bytes_before = counts()
        asked_before = read_by_loop_devices()
        with contextlib.ExitStack() as mounted:
            begin = time.monotonic()
            target = mounted.enter_context(stack(url))
            digest = run(["sha256sum", "--", *self.files], cwd=target)
            seconds = time.monotonic() - begin
            requests, sent = counts()
            asked = read_by_loop_devices() - asked_before
        return Run(seconds, requests - requests_before, sent - bytes_before, asked), hashlib.sha256(digest.encode()).hexdigest()

    @contextlib.contextmanager
    def _served(self):
        command = [sys.executable, SERVER, str(self.images.multi.parent), str(DELAY_MS)]
        with daemon(command, stdout=subprocess.PIPE, text=True) as server:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"

    @functools.cached_property
    def files(self) -> list[str]:
        """Evenly spread over the sorted tree."""
        with self.bench.kernel_tree(self.images.raw) as tree:
            found = sorted(
                str(path.relative_to(tree))
                for path in tree.rglob("*")
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= LONGEST_FILE
            )
        return found[:: max(1, len(found) // FILES)][:FILES]

    def _of_needed(self, medians: dict[str, float]) -> float:
        return medians[OURS] * MIB / self._needed

    @functools.cached_property
    def _needed(self) -> int:
        """Compressed bytes of the xz blocks that hold the places."""
        return xz_needed(self.images.multi, self.places)

    @functools.cached_property
    def places(self) -> set[int]:
        """Where on the disk these files are, what leads to them and the superblock: the blocks' first bytes."""
        places = {0, PARTITION_AT}
        folders = {str(parent) for name in self.files for parent in Path(name).parents}
        image = f"{self.images.raw}?offset={PARTITION_AT}"
        asked = "".join(f'blocks "/{name}"\nimap "/{name}"\n' for name in [*self.files, *sorted(folders - {"."}), ""])
        script = self.bench.work / "debugfs"
        script.write_text(asked)
        for line in run(["debugfs", "-f", str(script), image]).splitlines():
            # What was asked, and the block group of an inode.
            if line.startswith(("debugfs:", "Inode ")):
                continue
            numbers = re.findall(r"located at block (\d+)", line) or re.findall(r"\b\d+\b", line)
            places.update(PARTITION_AT + int(number) * BLOCK_OF_FS for number in numbers)
        return places


def read_by_loop_devices() -> int:
    """Bytes that were ever read from all of them."""
    stats = Path("/sys/block").glob("loop*/stat")
    # Sectors of 512 bytes; Documentation/block/stat.rst.
    return sum(int(stat.read_text().split()[2]) * 512 for stat in stats)


def xz_needed(image: Path, places: set[int]) -> int:
    """Compressed bytes of the xz blocks that hold one of these places."""
    total = 0
    listed = run(["xz", "--robot", "--list", "-vv", str(image)])
    for fields in (line.split("\t") for line in listed.splitlines()):
        if fields[0] == "block":
            start, packed, length = int(fields[5]), int(fields[6]), int(fields[7])
            total += packed if any(start <= place < start + length for place in places) else 0
    return total
