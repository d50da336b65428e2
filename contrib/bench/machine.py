"""Rows (m), (n), (o) and (p): disks of machines, encryption, overlays."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import MIB
from measure import Goal, Row
from processes import run
from uses import OURS, Uses, warm

QEMU, NBDKIT, COW = "qemu-nbd + nbdfuse", "nbdkit + nbdfuse", "loopmount --cow"
# Of the reads of row p: what an empty overlay costs is less than what one run differs from the next.
COW_ROUNDS = 15
# Of each fio run: there are many.
SECONDS = 1
# How many blocks are written to see whether the right ones are.
WRITES = 500
# Writes 4 KiB to the file $1 at $2 places of its $3 bytes, the same ones each time, and syncs.
RANDOM_WRITES = """
import os, random, sys
dice, disk = random.Random(5), os.open(sys.argv[1], os.O_RDWR)
for number in range(int(sys.argv[2])):
    place = dice.randrange(int(sys.argv[3]) // 4096) * 4096
    os.pwrite(disk, number.to_bytes(4, "big") * 1024, place)
os.fsync(disk)
os.close(disk)
"""
# The system's: the ordinary user may not reach another.
PYTHON = "/usr/bin/python3"
# LUKS1 has sectors of 512 bytes.
CIPHER, SECTOR = "aes-256-xts", 512


@dataclass(frozen=True)
class Machine(Uses):
    """Makes the rows for some images. All of it is done as the ordinary user."""

    # Runs `cargo build` for an example of nbdserve; where the program is.
    example: Callable[[str], Path]

    # ---- (m) qcow2

    def qcow2(self) -> list[Row]:
        """Through --fuse, read and written."""
        images = self.images
        rows = []
        for key, title, image in (
            ("plain", "qcow2", images.qcow2),
            ("packed", "qcow2, compressed with zlib", images.packed_qcow2),
            ("chain", "qcow2 with two backing files", images.chain_qcow2),
        ):
            # No references are followed out of the folder; all of them are in it.
            stacks = {OURS: self._ours(image), QEMU: self._qemu("qcow2", image)}
            rows += self._reads(f"m.{key}", title, image, stacks, QEMU, lambda image=image: self._converted(image, "qcow2"))
        stacks = {
            OURS: lambda image: self.bench.loopmount_file(str(image), True, "-w"),
            QEMU: lambda image: self.bench.qemu_file("qcow2", image, True, writable=True),
        }
        return rows + self._writes("m", "qcow2", images.qcow2, stacks, lambda image: self._converted(image, "qcow2"), empty=True)

    # ---- (n) LUKS

    def luks(self) -> list[Row]:
        """Through --fuse, and the key."""
        images = self.images
        image, key = images.luks, images.key
        options = f"--key-file={key}"
        stacks = {
            OURS: self._ours(image, options),
            QEMU: self._qemu("luks", image, key),
            NBDKIT: lambda: self.bench.nbdkit_file(["file", str(image)], True, "luks", f"passphrase=+{key}"),
        }
        rows = self._reads("n", "LUKS, aes-xts-plain64", image, stacks, QEMU, lambda: self._output(["sha256sum", str(images.small)]))
        written = {
            OURS: lambda image: self.bench.loopmount_file(str(image), True, "-w", options),
            QEMU: lambda image: self.bench.qemu_file("luks", image, True, key, writable=True),
        }
        rows += self._writes("n", "LUKS", image, written, lambda image: self._converted(image, "luks"))
        return [*rows, self._cipher(image, key), *self._kdf()]

    def _cipher(self, image: Path, key: Path) -> Row:
        """The layer itself, without FUSE, on all cores."""
        cores = os.cpu_count() or 1
        alone = f"openssl speed, {cores} cores"

        def ours() -> float:
            warm(image)
            return float(run([str(self.example("luks_speed")), str(image), str(key), str(cores)]))

        def cipher() -> float:
            command = ["openssl", "speed", "-evp", CIPHER, "-bytes", str(SECTOR), "-seconds", "1", "-decrypt", "-multi", str(cores)]
            found = re.search(r"^AES-256-XTS\s+([\d.]+)k$", run(command), re.MULTILINE | re.IGNORECASE)
            if not found:
                raise RuntimeError("openssl speed prints something else than it did")
            return float(found[1]) * 1000 / MIB

        goal = Goal("at least 0.7 of the cipher alone", lambda m: m[OURS] / m[alone], 0.7)
        title = f"LUKS read by the library, image in the page cache, and {CIPHER} of {SECTOR} bytes in memory"
        return Row("n.cipher", title, "MiB/s", {OURS: ours, alone: cipher}, {}, (goal,))

    def _kdf(self) -> list[Row]:
        """From the command until the key is known."""
        rows = []
        key = self.images.key
        for kind, image in (("argon2id", self.images.argon2_luks), ("pbkdf2", self.images.pbkdf2_luks)):
            contenders = {
                OURS: [self.bench.loopmount, "--info", f"--key-file={key}", str(image)],
                "cryptsetup": ["cryptsetup", "open", "--test-passphrase", "--key-file", str(key), str(image)],
            }
            measured = {name: (lambda command=command: self._seconds(lambda: run(command))) for name, command in contenders.items()}
            goal = Goal("within 1.3 of cryptsetup", lambda m: m[OURS] / m["cryptsetup"], 1.3, at_least=False)
            rows.append(Row(f"n.kdf.{kind}", f"LUKS2, {kind}: is it the passphrase?", "s", measured, {}, (goal,)))
        return rows

    # ---- (o) vmdk

    def vmdk(self) -> list[Row]:
        """As exported by VMware, each grain compressed."""
        image = self.images.vmdk
        stacks = {OURS: self._ours(image), QEMU: self._qemu("vmdk", image)}
        raw = lambda: self._output(["sha256sum", str(self.images.small)])
        return self._reads("o", "vmdk, streamOptimized", image, stacks, QEMU, raw, 1.5)

    # ---- (p) cow

    def cow(self) -> list[Row]:
        """An overlay that costs nothing until it is written to."""
        # Three in a hundred of the small one would be a matter of milliseconds.
        raw = self.images.raw
        stacks = {COW: self._ours(raw, "--cow"), OURS: self._ours(raw)}
        goal = [Goal("costs less than 3 %", lambda m: m[OURS] / m[COW], 0.97)]
        random_goal = [Goal("costs less than 3 %", lambda m: m[COW] / m[OURS], 0.97)]
        title = "a raw disk through an empty overlay: "
        checks = {name: self._digest_of_file(stack, True) for name, stack in stacks.items()}
        timed = {name: self._warm(raw, self._timed(stack, self._read_all, True)) for name, stack in stacks.items()}
        rows = [Row("p.read", f"{title}read in order", "s", timed, checks, tuple(goal), least_rounds=COW_ROUNDS)]
        for jobs in (1, 8):
            contenders = {name: self._warm(raw, self._fio(stack, "randread", jobs)) for name, stack in stacks.items()}
            what = f"{title}random 4 KiB reads, {jobs} at a time"
            rows.append(Row(f"p.random.{jobs}", what, "reads/s", contenders, {}, tuple(random_goal), least_rounds=COW_ROUNDS))
        raw = self.images.small
        written = {
            OURS: lambda image: self.bench.loopmount_file(str(image), True, "--cow"),
            NBDKIT: lambda image: self.bench.nbdkit_file(["file", str(image)], True, "cow", writable=True),
        }
        for jobs in (1, 8):
            contenders = {
                name: self._warm(raw, self._fio(lambda stack=stack: stack(raw), "randwrite", jobs)) for name, stack in written.items()
            }
            goals = (Goal("at least nbdkit's cow filter", lambda m: m[OURS] / m[NBDKIT], 1),)
            checks = {name: (lambda stack=stack: self._overlaid(raw, stack)) for name, stack in written.items()} if jobs == 1 else {}
            if jobs == 1:
                checks["raw"] = lambda: self._written(raw, None, lambda copy: self._output(["sha256sum", str(copy)]))
            rows.append(Row(f"p.write.{jobs}", f"random 4 KiB writes to an overlay, {jobs} at a time", "writes/s", contenders, checks, goals))
        return rows

    def _overlaid(self, image: Path, stack) -> str:
        """What is read of an overlay after some writes; the image must be as it was."""
        before = self._output(["sha256sum", str(image)])
        with stack(image) as target:
            self._write_places(target, image.stat().st_size)
            digest = self._output(self.bench.command(["sha256sum", str(target)], True))
        if self._output(["sha256sum", str(image)]) != before:
            raise RuntimeError(f"{image} was written to")
        return digest

    # ---- what several rows have

    def _ours(self, image: Path, *options: str) -> Callable:
        return lambda: self.bench.loopmount_file(str(image), True, *options)

    def _qemu(self, driver: str, image: Path, key: Path | None = None) -> Callable:
        return lambda: self.bench.qemu_file(driver, image, True, key)

    def _warm(self, image: Path, measure: Callable[[], float]) -> Callable[[], float]:
        def warmed() -> float:
            warm(image)
            return measure()

        return warmed

    def _fio(self, stack, rw: str, jobs: int) -> Callable[[], float]:
        # All of them hold the small disk.
        return self._random(stack, rw, jobs, True, self.images.small.stat().st_size, SECONDS)

    def _reads(self, key: str, title: str, image: Path, stacks: dict, theirs: str, truth, factor: float = 1) -> list[Row]:
        """In order and at random; `truth` is the digest of the disk by another way."""
        timed = {name: self._warm(image, self._timed(stack, self._read_all, True)) for name, stack in stacks.items()}
        checks = {name: self._digest_of_file(stack, True) for name, stack in stacks.items()}
        text = f"at least {f'{factor} times ' if factor != 1 else ''}qemu-nbd"
        goals = (Goal(text, lambda m: m[theirs] / m[OURS], factor),)
        rows = [Row(f"{key}.read", f"a disk of 256 MiB, {title}: read in order", "s", timed, {**checks, "reference": truth}, goals)]
        for jobs in (1, 8):
            contenders = {name: self._warm(image, self._fio(stack, "randread", jobs)) for name, stack in stacks.items()}
            goals = (Goal("at least qemu-nbd", lambda m: m[OURS] / m[theirs], 1),)
            title_of = f"{title}: random 4 KiB reads, {jobs} at a time"
            rows.append(Row(f"{key}.random.{jobs}", title_of, "reads/s", contenders, {}, goals))
        return rows

    def _writes(self, key: str, title: str, image: Path, stacks: dict, digest, empty: bool = False) -> list[Row]:
        """The whole disk in order, and blocks at random, each into a copy; with `empty` the first into an image of which
        nothing is allocated yet."""
        goals = (Goal("at least qemu-nbd", lambda m: m[QEMU] / m[OURS], 1),)
        whole = {name: (lambda stack=stack: self._write_all(image, stack, digest, empty)[0]) for name, stack in stacks.items()}
        checks = {name: (lambda stack=stack: self._write_all(image, stack, digest, empty)[1]) for name, stack in stacks.items()}
        checks["raw"] = lambda: self._output(["sha256sum", str(self.images.small)])
        what = f"{title}: the whole disk written in order" + (", nothing of it allocated before" if empty else "")
        rows = [Row(f"{key}.write", what, "s", whole, checks, goals)]
        for jobs in (1, 8):
            contenders = {name: (lambda stack=stack, jobs=jobs: self._write_random(image, stack, jobs)) for name, stack in stacks.items()}
            checks = {name: (lambda stack=stack: self._written(image, stack, digest)) for name, stack in stacks.items()} if jobs == 1 else {}
            if jobs == 1:
                checks["raw"] = lambda: self._written(self.images.small, None, lambda copy: self._output(["sha256sum", str(copy)]))
            goals = (Goal("at least qemu-nbd", lambda m: m[OURS] / m[QEMU], 1),)
            rows.append(Row(f"{key}.write.{jobs}", f"{title}: random 4 KiB writes, {jobs} at a time", "writes/s", contenders, checks, goals))
        return rows

    def _write_all(self, image: Path, stack, digest, empty: bool) -> tuple[float, str]:
        """Seconds, and what the image holds then."""
        with self.bench.kept(True) as folder:
            copy = folder / image.name
            if empty:
                run(["qemu-img", "create", "-q", "-f", "qcow2", str(copy), str(self.images.small.stat().st_size)])
            else:
                shutil.copyfile(image, copy)
            self.bench.give(copy)
            warm(self.images.small)
            with stack(copy) as target:
                # The source is larger than nothing: a target that is too short fails.
                command = ["dd", f"if={self.images.small}", f"of={target}", "bs=1M", "conv=notrunc,fsync", "status=none"]
                seconds = self._seconds(lambda: run(self.bench.command(command, True)))
            return seconds, digest(copy)

    def _write_random(self, image: Path, stack, jobs: int) -> float:
        with self.bench.kept(True) as folder:
            copy = folder / image.name
            shutil.copyfile(image, copy)
            self.bench.give(copy)
            return self._fio(lambda: stack(copy), "randwrite", jobs)()

    def _written(self, image: Path, stack, digest) -> str:
        """The digest of a copy after some writes, through `stack` or to the file itself."""
        with self.bench.kept(True) as folder:
            copy = folder / image.name
            shutil.copyfile(image, copy)
            self.bench.give(copy)
            size = self.images.small.stat().st_size
            if stack is None:
                self._write_places(copy, size)
            else:
                with stack(copy) as target:
                    self._write_places(target, size)
            return digest(copy)

    def _write_places(self, target: Path, size: int) -> None:
        run(self.bench.command([PYTHON, "-c", RANDOM_WRITES, str(target), str(WRITES), str(size)], True))

    def _converted(self, image: Path, driver: str) -> str:
        """The digest of what qemu-img reads in an image, after it has called it sound."""
        if driver == "qcow2":
            check = subprocess.run(["qemu-img", "check", "-q", str(image)], capture_output=True, text=True, check=False)
            # 3: nothing is wrong but leaked clusters.
            if check.returncode not in (0, 3):
                raise RuntimeError(f"qemu-img check {image}: {check.stdout}{check.stderr}")
        with self.bench.kept(False) as folder:
            raw = folder / "raw"
            options = self.bench.qemu_options(driver, image, self.images.key if driver == "luks" else None)
            run(["qemu-img", "convert", "-O", "raw", *options, str(raw)])
            return hashlib.file_digest(raw.open("rb"), "sha256").hexdigest()
