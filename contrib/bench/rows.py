"""The rows of the benchmark and what each must reach."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import MIB
from machine import Machine
from measure import Goal, Row
from packed import Packed
from peers import Peers
from processes import run
from remote import Remote
from remote_machine import RemoteMachine
from remote_packed import RemotePacked
from stacks import LONGEST_BLOCK
from uses import CACHE, MOST_MEMORY, OURS, PART, Uses, warm


@dataclass(frozen=True)
class Rows(Uses):
    """Makes the rows for some images."""

    # Seconds of each fio run.
    fio_runtime: int
    # Builds an example of nbdserve; where the program is.
    example: Callable[[str], Path]

    def all(self) -> dict[str, Callable[[], list[Row]]]:
        """By letter."""
        remote = Remote(self.bench, self.images)
        machine = Machine(self.bench, self.images, self.example)
        packed, peers = Packed(self.bench, self.images), Peers(self.bench, self.images)
        return {
            "a": self.sequential,
            "b": self.trees,
            "c": self.random,
            "d": self.start,
            "e": remote.rows,
            "f": self.memory,
            "g": packed.sequential,
            "h": packed.random,
            "i": packed.again,
            "j": RemotePacked(remote).rows,
            "k": peers.rows,
            "l": packed.memory,
            "m": machine.qcow2,
            "n": machine.luks,
            "o": machine.vmdk,
            "p": machine.cow,
            "q": RemoteMachine(remote).rows,
        }

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
        """tar of a tree through the mount, cold."""
        rows = []
        for who, user, factor, peer in (("root", False, 1.6, "loop"), ("user", True, 2.0, "fuse2fs")):
            theirs = f"nbdkit + nbdfuse + {peer}"
            stacks = self._trees(self.images.multi, user, theirs, "xz")
            rows.append(
                Row(
                    f"b.{who}",
                    f"tar of a tree (/{', /'.join(PART)}), cold, as {who}",
                    "s",
                    {name: self._timed(stack, self._tar_part, user, cold=True) for name, stack in stacks.items()},
                    {name: self._digest_of_tree(stack, user, PART) for name, stack in stacks.items()},
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
            title = f"random 4 KiB reads, {jobs} at a time, as root, --fuse (FUSE passthrough)"
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
            # Under fuse2fs it takes minutes for the same memory.
            "nbdkit + nbdfuse": lambda: self._memory(
                lambda: self.bench.nbdkit_file(["file", multi], True, "xz"), "VmHWM", self._read_all
            ),
        }
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
                goals=(Goal(f"at most {MOST_MEMORY} MiB", both, MOST_MEMORY, at_least=False),),
            ),
        ]

    # ---- how (c) is measured

    def _fio(self, stack, jobs: int, user: bool) -> Callable[[], float]:
        """Reads per second."""
        raw = self.images.raw
        measure = self._random(stack, "randread", jobs, user, raw.stat().st_size, self.fio_runtime)

        def warmed() -> float:
            warm(raw)
            return measure()

        return warmed
