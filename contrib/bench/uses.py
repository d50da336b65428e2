"""What is done with a mount, and how it is measured."""

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
from processes import run
from stacks import Bench

# One digest of everything in the tree $1: names, types, modes, link targets, contents. lost+found is
# root's alone, and empty.
TREE_DIGEST = """
cd "$1" && shift && {
    find "$@" -path ./lost+found -prune -o -printf '%p %y %m %l\\n' | LC_ALL=C sort
    find "$@" -path ./lost+found -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --
} | sha256sum
"""
# All of the tree, and a part of it, about 240 MiB, for what takes the slowest peers many minutes.
ALL = (".",)
PART = ("include", "lib")
# The decoded blocks that the rows about memory allow, in bytes, and what they may take in all, in MiB.
CACHE = 256 * MIB
MOST_MEMORY = CACHE // MIB + 64
OURS = "loopmount"
# The same where an earlier mount has filled the cache.
KNOWN = "loopmount, second mount"
# What lies between two checkpoints of gzip, decoded.
CHECKPOINTS = 4 * MIB


@dataclass(frozen=True)
class Uses:
    """For the classes that make rows."""

    bench: Bench
    images: Images

    def _timed(self, stack, use, user: bool, cold: bool = False) -> Callable[[], float]:
        """Seconds of `use` of a fresh mount."""

        def measure() -> float:
            if cold:
                drop_caches()
            with stack() as target:
                return self._seconds(lambda: use(target, user))

        return measure

    def _from_command(self, stack, use, image: Path) -> Callable[[], float]:
        """Seconds of mounting and `use`, as the ordinary user, of an image in the page cache."""

        def measure() -> float:
            warm(image)
            with contextlib.ExitStack() as mounted:
                return self._seconds(lambda: use(mounted.enter_context(stack()), True))

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

    def _read_all(self, target: Path, user: bool, *flags: str) -> None:
        run(self.bench.command(["dd", f"if={target}", "of=/dev/null", "bs=1M", "status=none", *flags], user))

    def _read_direct(self, target: Path, user: bool) -> None:
        """Past the page cache, as programs read that have a cache of their own."""
        self._read_all(target, user, "iflag=direct")

    def _tar(self, target: Path, user: bool, what: tuple[str, ...] = ALL) -> None:
        # Into a pipe: tar notices /dev/null and leaves the contents out.
        pipe = 'tar -C "$1" --exclude=./lost+found -cf - "${@:2}" | cat > /dev/null'
        run(self.bench.command(["bash", "-o", "pipefail", "-c", pipe, "bash", str(target), *what], user))

    def _tar_part(self, target: Path, user: bool) -> None:
        self._tar(target, user, PART)

    def _digest_of_file(self, stack, user: bool) -> Callable[[], str]:
        def check() -> str:
            with stack() as target:
                return self._output(self.bench.command(["sha256sum", str(target)], user))

        return check

    def _digest_of_tree(self, stack, user: bool, what: tuple[str, ...] = ALL) -> Callable[[], str]:
        def check() -> str:
            with stack() as target:
                digest = ["bash", "-o", "pipefail", "-c", TREE_DIGEST, "bash", str(target), *what]
                return self._output(self.bench.command(digest, user))

        return check

    def _random(self, stack, rw: str, jobs: int, user: bool, size: int, seconds: int) -> Callable[[], float]:
        """Requests of 4 KiB per second, at random places of the first `size` bytes."""

        def measure() -> float:
            with stack() as target:
                reads = rw == "randread"
                command = [
                    "fio", "--name=random", f"--filename={target}", *(["--readonly"] if reads else []), f"--rw={rw}", "--bs=4k",
                    "--direct=1", "--ioengine=psync", "--time_based", f"--runtime={seconds}", f"--numjobs={jobs}",
                    f"--size={size // 4096 * 4096}", "--group_reporting", "--output-format=json", "--allow_file_create=0",
                ]  # fmt: skip
                cwd = self.bench.home() if user else self.bench.work
                out = run(self.bench.command(command, user), cwd=cwd)
                return json.loads(out)["jobs"][0]["read" if reads else "write"]["iops"]

        return measure

    @staticmethod
    def _output(command: list[str]) -> str:
        """The first word that `command` prints."""
        return run(command).split()[0]

    def _tool_seconds(self, decode: list[str], image: Path) -> float:
        """Of the tool of a format, which decodes an image in the page cache."""
        warm(image)
        return self._seconds(lambda: run(decode, stdout=subprocess.DEVNULL))

    def _digest_of_tool(self, decode: list[str]) -> str:
        return self._output(["bash", "-o", "pipefail", "-c", '"$@" | sha256sum', "bash", *decode])

    def _memory(self, stack, what: str, use) -> float:
        """The sum over the processes behind a mount, in MiB."""
        before = set(processes.descendants())
        with stack() as target:
            behind = [pid for pid in processes.descendants() if pid not in before]
            if use is not None:
                use(target, True)
            return processes.memory(behind, what) / MIB


def drop_caches() -> None:
    """Nothing of any file stays in memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def warm(path: Path) -> None:
    """All of a file is in the page cache."""
    run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"])
