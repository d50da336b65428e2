"""The rows of the benchmark and what each must reach."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import processes
from images import MIB, Images
from measure import Goal, Row
from processes import run
from remote import Remote
from stacks import LONGEST_BLOCK, Bench

# One digest of everything in the tree $1: names, types, modes, link targets, contents. lost+found is
# root's alone, and empty.
TREE_DIGEST = """
cd "$1" && {
    find . -path ./lost+found -prune -o -printf '%p %y %m %l\\n' | LC_ALL=C sort
    find . -path ./lost+found -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --
} | sha256sum
"""
# The decoded blocks that row (f) allows, in bytes.
CACHE = 256 * MIB
OURS = "loopmount"


@dataclass(frozen=True)
class Rows:
    """Makes the rows for some images."""

    bench: Bench
    images: Images
    # Seconds of each fio run.
    fio_runtime: int

    def all(self) -> dict[str, Callable[[], list[Row]]]:
        """By letter."""
        return {"a": self.sequential, "b": self.trees, "c": self.random, "d": self.start, "e": Remote(self.bench, self.images).rows, "f": self.memory}

    # ---- (a) the whole disk in order

    def sequential(self) -> list[Row]:
        """Whole-disk read through --fuse."""
        return [
            self._sequential(
                "a.multi",
                "whole disk, in order, xz with blocks of 16 MiB",
                self.images.multi,
                "xz -T0 -dc",
                [
                    Goal("at least 0.9 of xz -T0 -dc", lambda m: m["xz -T0 -dc"] / m[OURS], 0.9),
                    Goal("at least 1.7 times nbdkit + nbdfuse", lambda m: m["nbdkit + nbdfuse"] / m[OURS], 1.7),
                ],
            ),
            self._sequential(
                "a.single",
                "whole disk, in order, xz in one block",
                self.images.single,
                "xz -dc",
                [Goal("at least 0.9 of xz -dc", lambda m: m["xz -dc"] / m[OURS], 0.9)],
            ),
        ]

    def _sequential(self, key: str, title: str, image: Path, xz: str, goals: list[Goal]) -> Row:
        stacks = {
            OURS: lambda: self.bench.loopmount_file(str(image), True),
            "nbdkit + nbdfuse": lambda: self.bench.nbdkit_file(["file", str(image)], True, "xz", LONGEST_BLOCK),
        }
        decode = [*xz.split(), str(image)]
        contenders = {name: self._timed(stack, self._read_all, True) for name, stack in stacks.items()}
        contenders[xz] = lambda: self._seconds(lambda: run(decode, stdout=subprocess.DEVNULL))
        checks = {name: self._digest_of_file(stack, True) for name, stack in stacks.items()}
        checks[xz] = lambda: self._output(["bash", "-o", "pipefail", "-c", '"$@" | sha256sum', "bash", *decode])
        return Row(key, title, "s", contenders, checks, tuple(goals))

    # ---- (b) a tree

    def trees(self) -> list[Row]:
        """tar of everything through the mount, cold."""
        rows = []
        for who, user, factor, peer in (("root", False, 1.6, "loop"), ("user", True, 2.0, "fuse2fs")):
            theirs = f"nbdkit + nbdfuse + {peer}"
            stacks = self._trees(self.images.multi, user, theirs, "xz")
            rows.append(
                Row(
                    f"b.{who}",
                    f"tar of the tree, cold, as {who}",
                    "s",
                    {name: self._timed(stack, self._tar, user, cold=True) for name, stack in stacks.items()},
                    {name: self._digest_of_tree(stack, user) for name, stack in stacks.items()},
                    (Goal(f"at least {factor} times {theirs}", lambda m, theirs=theirs: m[theirs] / m[OURS], factor),),
                )
            )
        return rows

    def _trees(self, image: Path, user: bool, theirs: str, *filters: str):
        return {
            OURS: lambda: self.bench.loopmount_tree(str(image), user),
            theirs: lambda: self.bench.nbdkit_tree(["file", str(image)], user, *filters),
        }

    # ---- (c) random reads

    def random(self) -> list[Row]:
        """4 KiB at random places of an uncompressed image in the page cache."""
        raw = self.images.raw
        file = ["file", str(raw)]
        user = {
            OURS: lambda: self.bench.loopmount_file(str(raw), True),
            "nbdkit + nbdfuse": lambda: self.bench.nbdkit_file(file, True),
        }
        rows = []
        for jobs, factor in ((1, 1.5), (8, 2.0)):
            contenders = {name: self._fio(stack, jobs, True) for name, stack in user.items()}
            contenders["loop device"] = self._fio(lambda: self.bench.loop_device(raw), jobs, False)
            text = f"at least {factor} times nbdfuse"
            goal = Goal(text, lambda m: m[OURS] / m["nbdkit + nbdfuse"], factor)
            checks = {name: self._digest_of_file(stack, True) for name, stack in user.items()} if jobs == 1 else {}
            title = f"random 4 KiB reads, {jobs} at a time"
            rows.append(Row(f"c.{jobs}", title, "reads/s", contenders, checks, (goal,)))
        for jobs in (1, 8):
            contenders = {
                OURS: self._fio(lambda: self.bench.loopmount_file(str(raw), False), jobs, False),
                "loop device": self._fio(lambda: self.bench.loop_device(raw), jobs, False),
            }
            title = f"random 4 KiB reads, {jobs} at a time, as root, --fuse"
            rows.append(Row(f"c.root.{jobs}", title, "reads/s", contenders))
        rows.append(self._plain())
        return rows

    def _plain(self) -> Row:
        """A plain file as root: nothing may be slower than mount -o loop."""
        raw = self.images.raw
        stacks = {
            OURS: lambda: self.bench.loopmount_tree(str(raw), False),
            "mount -o loop": lambda: self.bench.kernel_tree(raw),
        }
        goal = Goal("as fast as mount -o loop (0.95)", lambda m: m["mount -o loop"] / m[OURS], 0.95)
        contenders = {name: self._timed(stack, self._tar, False, cold=True) for name, stack in stacks.items()}
        checks = {name: self._digest_of_tree(stack, False) for name, stack in stacks.items()}
        return Row("c.plain", "tar of the tree, plain file as root, cold", "s", contenders, checks, (goal,))

    # ---- (d) from the command to the first ls

    def start(self) -> list[Row]:
        """From typing the command until `ls` is done."""
        rows = []
        for who, user, peer in (("root", False, "loop"), ("user", True, "fuse2fs")):
            theirs = f"nbdkit + nbdfuse + {peer}"
            under_150 = Goal("under 150 ms", lambda m: m[OURS], 0.150, at_least=False)
            half = Goal("under half of nbdkit's time", lambda m, theirs=theirs: m[OURS] / m[theirs], 0.5, at_least=False)
            within_2 = Goal("within 2 s for a user", lambda m: m[OURS], 2.0, at_least=False)
            raw = self._trees(self.images.raw, user, theirs)
            multi = self._trees(self.images.multi, user, theirs, "xz")
            # nbdkit decodes the whole disk first: row (a) shows how long that takes.
            single = {OURS: lambda user=user: self.bench.loopmount_tree(str(self.images.single), user)}
            for image, stacks, goals in (
                ("raw", raw, [under_150]),
                ("multi", multi, [half]),
                ("single", single, [within_2] if user else []),
            ):
                contenders = {name: self._until_ls(stack, user) for name, stack in stacks.items()}
                title = f"from the command to ls, {image}, as {who}"
                rows.append(Row(f"d.{image}.{who}", title, "s", contenders, {}, tuple(goals)))
        return rows

    # ---- (f) memory

    def memory(self) -> list[Row]:
        """Of all processes of a unit."""
        multi = str(self.images.multi)
        tree = lambda: self.bench.loopmount_tree(multi, True)
        idle = {
            OURS: lambda: self._memory(tree, "RssAnon", None),
            "loopmount --fuse": lambda: self._memory(
                lambda: self.bench.loopmount_file(multi, True), "RssAnon", None
            ),
            "nbdkit + nbdfuse + fuse2fs": lambda: self._memory(
                lambda: self.bench.nbdkit_tree(["file", multi], True, "xz"), "RssAnon", None
            ),
        }
        option = f"--cache-size={CACHE // MIB}M"
        peak = {
            OURS: lambda: self._memory(
                lambda: self.bench.loopmount_tree(multi, True, option), "VmHWM", self._tar
            ),
            "loopmount --fuse": lambda: self._memory(
                lambda: self.bench.loopmount_file(multi, True, option), "VmHWM", self._read_all
            ),
            "nbdkit + nbdfuse + fuse2fs": lambda: self._memory(
                lambda: self.bench.nbdkit_tree(["file", multi], True, "xz"), "VmHWM", self._tar
            ),
        }
        most = (CACHE + 64 * MIB) / MIB
        both = lambda m: max(m[OURS], m["loopmount --fuse"])
        return [
            Row(
                "f.idle",
                "RssAnon of a mount that nothing has read yet",
                "MiB",
                idle,
                goals=(Goal("under 16 MiB", both, 16, at_least=False),),
            ),
            Row(
                "f.peak",
                f"peak RSS of reading everything, cache of {CACHE // MIB} MiB",
                "MiB",
                peak,
                goals=(Goal(f"at most {most:.0f} MiB", both, most, at_least=False),),
            ),
        ]

    def _memory(self, stack, what: str, use) -> float:
        """The sum over the processes behind a mount, in MiB."""
        before = set(processes.descendants())
        with stack() as target:
            behind = [pid for pid in processes.descendants() if pid not in before]
            if use is not None:
                use(target, True)
            return processes.memory(behind, what) / MIB

    # ---- how things are measured

    def _timed(self, stack, use, user: bool, cold: bool = False) -> Callable[[], float]:
        """Seconds of `use` of a fresh mount."""

        def measure() -> float:
            if cold:
                drop_caches()
            with stack() as target:
                return self._seconds(lambda: use(target, user))

        return measure

    def _until_ls(self, stack, user: bool) -> Callable[[], float]:
        def measure() -> float:
            with contextlib.ExitStack() as mounted:
                return self._seconds(lambda: run(self.bench.command(["ls", str(mounted.enter_context(stack()))], user)))

        return measure

    @staticmethod
    def _seconds(use) -> float:
        begin = time.monotonic()
        use()
        return time.monotonic() - begin

    def _fio(self, stack, jobs: int, user: bool) -> Callable[[], float]:
        """Reads per second."""

        def measure() -> float:
            warm(self.images.raw)
            with stack() as target:
                command = [
                    "fio", "--name=random", f"--filename={target}", "--readonly", "--rw=randread", "--bs=4k", "--direct=1",
                    "--ioengine=psync", "--time_based", f"--runtime={self.fio_runtime}", f"--numjobs={jobs}",
                    f"--size={self.images.raw.stat().st_size // 4096 * 4096}", "--group_reporting", "--output-format=json",
                ]  # fmt: skip
                cwd = self.bench.home() if user else self.bench.work
                out = run(self.bench.command(command, user), cwd=cwd)
                return json.loads(out)["jobs"][0]["read"]["iops"]

        return measure

    def _read_all(self, target: Path, user: bool) -> None:
        run(self.bench.command(["dd", f"if={target}", "of=/dev/null", "bs=1M", "status=none"], user))

    def _tar(self, target: Path, user: bool) -> None:
        # Into a pipe: tar notices /dev/null and leaves the contents out.
        pipe = 'tar -C "$1" --exclude=./lost+found -cf - . | cat > /dev/null'
        run(self.bench.command(["bash", "-o", "pipefail", "-c", pipe, "bash", str(target)], user))

    def _digest_of_file(self, stack, user: bool) -> Callable[[], str]:
        def check() -> str:
            with stack() as target:
                return self._output(self.bench.command(["sha256sum", str(target)], user))

        return check

    def _digest_of_tree(self, stack, user: bool) -> Callable[[], str]:
        def check() -> str:
            with stack() as target:
                return self._output(self.bench.command(["bash", "-o", "pipefail", "-c", TREE_DIGEST, "bash", str(target)], user))

        return check

    @staticmethod
    def _output(command: list[str]) -> str:
        """The first word that `command` prints."""
        return run(command).split()[0]


def drop_caches() -> None:
    """Nothing of any file stays in memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def warm(path: Path) -> None:
    """All of a file is in the page cache."""
    run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"])
