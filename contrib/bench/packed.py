"""Rows (g), (h), (i) and (l): compressed images of which no index is known, and then is."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import processes
from images import MIB
from measure import Goal, Row
from processes import run
from stacks import has_filter
from uses import CACHE, CHECKPOINTS, KNOWN, MOST_MEMORY, OURS, Uses

THEIRS = "nbdkit + nbdfuse"
RATARMOUNT, RATARMOUNT_KNOWN = "ratarmount", "ratarmount, second mount"
# Reads past the page cache.
DIRECT = "O_DIRECT"
# How many cold reads row (h) makes.
READS = 100
# Reads 4 KiB of the file $1 at each place; prints seconds, bytes and a digest.
RANDOM_READS = """
import hashlib, os, sys, time
disk, digest, seconds = os.open(sys.argv[1], os.O_RDONLY), hashlib.sha256(), 0.0
for place in map(int, sys.argv[2:]):
    begin = time.monotonic()
    data = os.pread(disk, 4096, place)
    seconds += time.monotonic() - begin
    digest.update(data)
print(digest.hexdigest(), seconds)
"""
# The system's: the ordinary user may not reach another.
PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Packed(Uses):
    """Makes the rows for some images."""

    # Cache folders that know an image, by contender and image.
    _known: dict[tuple[str, Path], Path] = field(default_factory=dict)

    # ---- (g) the whole disk in order, from the command to the last byte

    def sequential(self) -> list[Row]:
        """Mounts and reads through --fuse; each first pass counts."""
        gz, small = self.images.gz, self.images.small_bz2
        return [
            self._sequential(
                "g.gzip",
                "mount and read the whole disk, gzip",
                gz,
                "zcat",
                [
                    Goal("at least 0.9 of zcat the first time", lambda m: m["zcat"] / m[OURS], 0.9),
                    Goal("at least 1.6 times zcat from the index", lambda m: m["zcat"] / m[KNOWN], 1.6),
                ],
                "gzip",
                again=True,
            ),
            self._sequential(
                "g.zstd.single",
                "mount and read the whole disk, zstd in one frame",
                self.images.zst,
                "zstdcat",
                [Goal(f"at least 0.9 of zstdcat, by {DIRECT}", lambda m: m["zstdcat"] / m[f"{OURS}, {DIRECT}"], 0.9)],
                direct=True,
            ),
            self._sequential(
                "g.zstd.multi",
                "mount and read the whole disk, zstd in frames of 4 MiB with a table",
                self.images.seekable,
                "zstdcat",
                [Goal(f"at least 1.6 times zstdcat, by {DIRECT}", lambda m: m["zstdcat"] / m[f"{OURS}, {DIRECT}"], 1.6)],
                direct=True,
            ),
            self._sequential(
                "g.zstd.pzstd",
                "mount and read the whole disk, zstd by pzstd, in frames of unknown size",
                self.images.pzst,
                "zstdcat",
                [
                    # A pass finds the frames' sizes first, as of gzip: everything is decoded twice.
                    Goal(f"at least 0.9 of zstdcat the first time, by {DIRECT}", lambda m: m["zstdcat"] / m[f"{OURS}, {DIRECT}"], 0.9),
                    Goal(f"at least 1.6 times zstdcat the second time, by {DIRECT}", lambda m: m["zstdcat"] / m[f"{KNOWN}, {DIRECT}"], 1.6),
                ],
                again=True,
                direct=True,
            ),
            self._sequential(
                "g.bzip2",
                "mount and read a disk of 256 MiB, bzip2",
                small,
                "bzcat",
                [Goal("at least 1.7 times bzcat", lambda m: m["bzcat"] / m[OURS], 1.7)],
                "bzip2",
            ),
        ]

    def _sequential(
        self, key: str, title: str, image: Path, tool: str, goals: list[Goal], theirs: str = "", again: bool = False, direct: bool = False
    ) -> Row:
        """Against the format's own tool, nbdkit with the filter `theirs` if there is one, and ratarmount;
        `again` with what the first mount has kept, too; `direct` past the page cache, too: the tool hands
        its bytes to nobody, and the page cache takes longer than it does."""
        stacks = {OURS: lambda: self.bench.loopmount_file(str(image), True)}
        if again:
            stacks[KNOWN] = self._ours_known(image)
        if theirs and has_filter(theirs):
            stacks[THEIRS] = lambda: self.bench.nbdkit_file(["file", str(image)], True, theirs)
        elif theirs:
            title += f" (this nbdkit has no filter {theirs})"
        stacks[RATARMOUNT] = lambda: self.bench.ratarmount_file(image, image.stem, True)
        if again:
            stacks[RATARMOUNT_KNOWN] = self._ratarmount_known(image)
        decode = [tool, str(image)]
        contenders = {name: self._from_command(stack, self._read_all, image) for name, stack in stacks.items()}
        if direct:
            for name in (OURS, KNOWN) if again else (OURS,):
                contenders[f"{name}, {DIRECT}"] = self._from_command(stacks[name], self._read_direct, image)
        contenders[tool] = lambda: self._tool_seconds(decode, image)
        # They also make what second mounts know.
        checks = {name: self._digest_of_file(stack, True) for name, stack in stacks.items()}
        checks[tool] = lambda: self._digest_of_tool(decode)
        return Row(key, title, "s", contenders, checks, tuple(goals))

    # ---- (h) random reads

    def random(self) -> list[Row]:
        """4 KiB at random places of a gzip image, each far from all others."""
        image = self.images.gz
        ours, ratarmount = self._ours_known(image), self._ratarmount_known(image)
        stacks = {OURS: ours, RATARMOUNT: ratarmount, THEIRS: lambda: self.bench.nbdkit_file(["file", str(image)], True, "gzip")}
        digest = lambda stack: lambda: self._random_reads(stack)[0]
        raw = lambda: run([PYTHON, "-c", RANDOM_READS, str(self.images.raw), *self._places()]).split()[0]
        size = self.images.raw.stat().st_size
        return [
            Row(
                "h.time",
                f"{READS} cold reads of 4 KiB in gzip, the image once mounted before: time of one",
                "ms",
                {name: (lambda stack=stack: self._random_reads(stack)[1] / READS * 1000) for name, stack in stacks.items()},
                {**{name: digest(stack) for name, stack in stacks.items()}, "raw": raw},
                most_rounds=3,
            ),
            Row(
                "h.decoded",
                "decoded for one of them",
                "MiB",
                {OURS: lambda: self._decoded(ours) / READS / MIB},
                goals=(Goal(f"at most what lies between two checkpoints, {CHECKPOINTS // MIB} MiB", lambda m: m[OURS] * MIB / CHECKPOINTS, 1, at_least=False),),
                most_rounds=1,
            ),
            Row(
                "h.index",
                "index of gzip on disk, of the decoded size",
                "%",
                {
                    OURS: lambda: processes.files_in(self._our_cache(image)) / size * 100,
                    RATARMOUNT: lambda: processes.files_in(self._ratarmount_index(image)) / size * 100,
                },
                goals=(Goal("under 1 %", lambda m: m[OURS], 1, at_least=False),),
                most_rounds=1,
            ),
        ]

    def _places(self) -> list[str]:
        """The same in every run, with two thirds of a region between any two."""
        dice = random.Random(4)
        region = self.images.raw.stat().st_size // READS
        places = [number * region + dice.randrange(region // 3) for number in range(READS)]
        dice.shuffle(places)
        return [str(place // 4096 * 4096) for place in places]

    def _random_reads(self, stack) -> tuple[str, float]:
        """A digest of what was read, and how long the reads took."""
        with stack() as target:
            return self._read_places(target)

    def _read_places(self, target: Path) -> tuple[str, float]:
        command = [PYTHON, "-c", RANDOM_READS, str(target), *self._places()]
        digest, seconds = run(self.bench.command(command, True)).split()
        return digest, float(seconds)

    def _decoded(self, stack) -> float:
        """Bytes of the blocks that were decoded for the random reads."""
        with stack() as target:
            before = self._decodes(target)
            self._read_places(target)
            return (self._decodes(target) - before) * CHECKPOINTS

    def _decodes(self, target: Path) -> int:
        units = json.loads(run(self.bench.command([self.bench.loopmount, "--stats", "--json", str(target)], True)))
        return next(layer["blocks"]["decodes"] for layer in units[0]["layers"] if layer["name"] == "gzip")

    # ---- (i) a huge block, the second time

    def again(self) -> list[Row]:
        """What an earlier mount has decoded is not decoded again."""
        image = self.images.single
        file = self._ours_known(image)

        def until_ls() -> float:
            kept = self._our_cache(image)
            return self._until_ls(lambda: self.bench.loopmount_tree(str(image), True, kept=kept), True)()

        decode = ["xz", "-dc", str(image)]
        return [
            Row(
                "i.start",
                "second mount of xz in one block, from the command to ls, as user",
                "s",
                {OURS: until_ls},
                goals=(Goal("within 150 ms", lambda m: m[OURS], 0.150, at_least=False),),
            ),
            Row(
                "i.read",
                "second mount of xz in one block, whole disk, in order",
                "s",
                {OURS: self._timed(file, self._read_all, True), "xz -dc": lambda: self._tool_seconds(decode, image)},
                {OURS: self._digest_of_file(file, True), "xz -dc": lambda: self._digest_of_tool(decode)},
                (Goal("at least 5 times faster than xz -dc", lambda m: m["xz -dc"] / m[OURS], 5),),
                3,
            ),
        ]

    # ---- (l) memory

    def memory(self) -> list[Row]:
        """Of all processes of a unit, whatever the layer."""
        images = {
            "gzip": ("gzip", self.images.gz),
            "zstd.single": ("zstd in one frame", self.images.zst),
            "zstd.multi": ("zstd in many frames", self.images.pzst),
            "bzip2": ("bzip2, a disk of 256 MiB", self.images.small_bz2),
        }
        option = f"--cache-size={CACHE // MIB}M"
        rows = []
        for key, (title, image) in images.items():
            name = str(image)
            contenders = {
                OURS: lambda name=name: self._memory(lambda: self.bench.loopmount_tree(name, True, option), "VmHWM", self._tar),
                "loopmount --fuse": lambda name=name: self._memory(
                    lambda: self.bench.loopmount_file(name, True, option), "VmHWM", self._read_all
                ),
            }
            goal = Goal(f"at most {MOST_MEMORY} MiB", lambda m: max(m.values()), MOST_MEMORY, at_least=False)
            title = f"peak RSS of reading everything, cache of {CACHE // MIB} MiB, {title}"
            rows.append(Row(f"l.{key}", title, "MiB", contenders, {}, (goal,), 2))
        return rows

    # ---- what is known of an image

    def _ours_known(self, image: Path) -> Callable:
        """A mount with the cache of an earlier one."""
        return lambda: self.bench.loopmount_file(str(image), True, kept=self._our_cache(image))

    def _ratarmount_known(self, image: Path) -> Callable:
        return lambda: self.bench.ratarmount_file(image, image.stem, True, self._ratarmount_index(image))

    def _our_cache(self, image: Path) -> Path:
        """What a mount has left in which everything was read."""

        def mount(kept: Path) -> None:
            with self.bench.loopmount_file(str(image), True, kept=kept) as disk:
                self._read_all(disk, True)

        return self._made_once(OURS, image, mount)

    def _ratarmount_index(self, image: Path) -> Path:
        """What a mount of ratarmount has left."""

        def mount(kept: Path) -> None:
            with self.bench.ratarmount_file(image, image.stem, True, kept):
                pass

        return self._made_once(RATARMOUNT, image, mount)

    def _made_once(self, name: str, image: Path, mount) -> Path:
        if (name, image) not in self._known:
            kept = self.bench.place(True)
            mount(kept)
            self._known[name, image] = kept
        return self._known[name, image]
