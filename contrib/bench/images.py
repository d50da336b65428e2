"""The images that the benchmark reads, made once and kept in a cache folder."""

import fcntl
import functools
import os
import shutil
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from processes import run

MIB = 1 << 20
# Real files, in this order, until there are TREE_BYTES of them.
SOURCES = ("/usr/bin", "/usr/include", "/usr/share", "/usr/lib")
TREE_BYTES = 1024 * MIB
# The disk: the partition's start, room for metadata beside the files, the backup table's sectors.
PARTITION_AT = MIB
SLACK = 192 * MIB
TAIL = MIB
# The same for the small disk: 256 MiB in all.
SMALL_TREE_BYTES = 192 * MIB
SMALL_SLACK = 62 * MIB
# What each thread of `xz -T0` compresses on its own.
BLOCK = "16MiB"
# The frames of the zstd image with a table at its end.
FRAME = 4 * MIB
# Those of pzstd -3: four of its windows.
PZSTD_FRAME = 8 * MIB
# The table: zstd's "seekable format", version 0.1.0.
SKIPPABLE, SEEKABLE = 0x184D2A5E, 0x8F92EAB1
# Changed when an image is made in another way: then those of earlier runs are of no use.
RECIPE = "2"


class Images:
    """The same disk in many wrappings, each made when it is first asked for, and a small one. All are
    readable by everybody."""

    def __init__(self, cache: Path, say) -> None:
        self._cache, self._say = cache, say
        cache.mkdir(parents=True, exist_ok=True)
        # An ordinary user's rows read them too.
        cache.chmod(0o755)
        stamp = cache / "recipe"
        if not stamp.exists() or stamp.read_text() != RECIPE:
            for old in cache.glob("disk.*"):
                old.unlink()
            stamp.write_text(RECIPE)

    @functools.cached_property
    def raw(self) -> Path:
        """As it is."""
        tree = self._cache / "tree"
        return self._made("disk.raw", f"from files of {', '.join(SOURCES)}", lambda part: _disk(part, tree, TREE_BYTES, SLACK))

    @functools.cached_property
    def multi(self) -> Path:
        """In blocks of 16 MiB, as a distribution would publish it."""
        return self._compressed("disk.multi.raw.xz", "-T0", f"--block-size={BLOCK}")

    @functools.cached_property
    def single(self) -> Path:
        """In one block."""
        return self._compressed("disk.single.raw.xz", "-T1")

    @functools.cached_property
    def gz(self) -> Path:
        """By gzip, in one member."""
        return self._filtered("disk.raw.gz", self.raw, "gzip", "-6", "-c")

    @functools.cached_property
    def zst(self) -> Path:
        """By zstd, in one frame that states its size."""
        return self._filtered("disk.single.raw.zst", self.raw, "zstd", "-3", "-T0", "-q", "-c")

    @functools.cached_property
    def pzst(self) -> Path:
        """By pzstd: many frames that do not state their sizes."""
        return self._filtered("disk.multi.raw.zst", self.raw, "pzstd", "-3", "-q", "-c")

    @functools.cached_property
    def seekable(self) -> Path:
        """By zstd, in frames of 4 MiB with a table of them at the end."""
        raw = self.raw

        def make(part: Path) -> None:
            with part.open("wb") as out:
                run(["split", f"--bytes={FRAME}", "--filter=zstd -3 -q -c", str(raw)], stdout=out)
            _add_seek_table(part, raw.stat().st_size)

        return self._made("disk.seekable.raw.zst", "with zstd -3, frame by frame", make)

    @functools.cached_property
    def tar_xz(self) -> Path:
        """In a tar, in xz blocks of 16 MiB."""
        raw = self.raw
        pack = 'tar -C "$1" -cf - "$2" | xz -1 -T0 --block-size="$3" -c'

        def make(part: Path) -> None:
            with part.open("wb") as out:
                run(["bash", "-o", "pipefail", "-c", pack, "bash", str(self._cache), raw.name, BLOCK], stdout=out)

        return self._made("disk.tar.xz", "with tar and xz -1 -T0", make)

    @functools.cached_property
    def small(self) -> Path:
        """Another disk, of 256 MiB: for what is slow."""
        tree = self._cache / "tree.small"
        make = lambda part: _disk(part, tree, SMALL_TREE_BYTES, SMALL_SLACK)
        return self._made("disk.small.raw", f"from files of {', '.join(SOURCES)}", make)

    @functools.cached_property
    def small_gz(self) -> Path:
        """That one by gzip."""
        return self._filtered("disk.small.raw.gz", self.small, "gzip", "-6", "-c")

    @functools.cached_property
    def small_bz2(self) -> Path:
        """By bzip2, in one stream."""
        return self._filtered("disk.small.raw.bz2", self.small, "bzip2", "-9", "-c")

    @functools.cached_property
    def small_tar(self) -> Path:
        """In a tar."""
        small = self.small
        pack = lambda part: run(["tar", "-C", str(self._cache), "-cf", str(part), small.name])
        return self._made("disk.small.tar", "with tar", pack)

    @functools.cached_property
    def qcow2(self) -> Path:
        """The small disk as qcow2."""
        return self._converted("disk.small.qcow2", "-O", "qcow2")

    @functools.cached_property
    def packed_qcow2(self) -> Path:
        """The same, each cluster compressed, as published for clouds."""
        return self._converted("disk.small.packed.qcow2", "-c", "-O", "qcow2")

    @functools.cached_property
    def chain_qcow2(self) -> Path:
        """Two overlays on it, each with a few clusters of its own."""
        middle = self._overlay("disk.small.middle.qcow2", self.qcow2, 1)
        return self._overlay("disk.small.top.qcow2", middle, 2)

    @functools.cached_property
    def vmdk(self) -> Path:
        """As vmdk for transport: each grain compressed."""
        return self._converted("disk.small.stream.vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized")

    @functools.cached_property
    def key(self) -> Path:
        """Opens all that are encrypted. Everybody may know it."""
        return self._made("disk.key", "for those that are encrypted", lambda part: part.write_text("open sesame"))

    @functools.cached_property
    def luks(self) -> Path:
        """Encrypted as qemu does it: LUKS1, aes-256, xts, plain64."""
        return self._encrypted("disk.small.luks", self.small)

    @functools.cached_property
    def large_qcow2(self) -> Path:
        """The large disk as qcow2."""
        return self._converted("disk.qcow2", "-O", "qcow2", source=self.raw)

    @functools.cached_property
    def large_luks(self) -> Path:
        """The large disk, encrypted."""
        return self._encrypted("disk.luks", self.raw)

    @functools.cached_property
    def argon2_luks(self) -> Path:
        """Nothing but a LUKS2 header with a keyslot as cryptsetup makes it on a machine like this."""
        return self._keyslot("disk.argon2.luks", "argon2id", "--pbkdf-memory=524288", "--pbkdf-parallel=4", "--pbkdf-force-iterations=4")

    @functools.cached_property
    def pbkdf2_luks(self) -> Path:
        """The same with the older function."""
        return self._keyslot("disk.pbkdf2.luks", "pbkdf2", "--pbkdf-force-iterations=2000000")

    def _keyslot(self, name: str, kind: str, *options: str) -> Path:
        key = self.key

        def make(part: Path) -> None:
            with part.open("wb") as out:
                out.truncate(32 * MIB)
            run(["cryptsetup", "luksFormat", "-q", "--type=luks2", f"--key-file={key}", f"--pbkdf={kind}", *options, str(part)])

        return self._made(name, "with cryptsetup luksFormat", make)

    def _encrypted(self, name: str, source: Path) -> Path:
        secret = f"secret,id=key,file={self.key}"
        return self._converted(name, "--object", secret, "-O", "luks", "-o", "key-secret=key,iter-time=100", source=source)

    def _converted(self, name: str, *options: str, source: Path | None = None) -> Path:
        source = source or self.small
        make = lambda part: run(["qemu-img", "convert", "-q", "-f", "raw", *options, str(source), str(part)])
        return self._made(name, f"with qemu-img convert {' '.join(options)}", make)

    def _overlay(self, name: str, below: Path, mark: int) -> Path:
        def make(part: Path) -> None:
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below.name, str(part)])
            writes = [f"write -P {mark} {(2 * at + mark) * MIB} 256k" for at in range(60)]
            run(["qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), str(part)])

        return self._made(name, "with qemu-img create", make)

    def _compressed(self, name: str, *options: str) -> Path:
        return self._filtered(name, self.raw, "xz", *options, "-c", takes=", takes minutes")

    def _filtered(self, name: str, source: Path, *command: str, takes: str = "") -> Path:
        """What `command` makes of `source`."""

        def make(part: Path) -> None:
            with part.open("wb") as out:
                run([*command, str(source)], stdout=out)

        return self._made(name, f"with {' '.join(command)}{takes}", make)

    def _made(self, name: str, how: str, make) -> Path:
        """A file that appears complete or not at all."""
        path = self._cache / name
        if path.exists():
            return path
        with (self._cache / "making").open("w") as lock:
            # One maker at a time.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                self._say(f"making {path} {how}")
                part = self._cache / f"{name}.part"
                try:
                    make(part)
                    part.chmod(0o644)
                    part.rename(path)
                finally:
                    part.unlink(missing_ok=True)
        return path


def _disk(part: Path, tree: Path, tree_bytes: int, slack: int) -> None:
    """A GPT with one ext4 that holds a tree of that many bytes."""
    shutil.rmtree(tree, ignore_errors=True)
    try:
        _copy_tree(tree, tree_bytes)
        size = tree_bytes + slack
        with part.open("wb") as disk:
            disk.truncate(PARTITION_AT + size + TAIL)
        # 8304: "Linux root (x86-64)".
        table = ["sgdisk", "-n", f"1:{PARTITION_AT // 512}:+{size // 1024}K", "-t", "1:8304", str(part)]
        run(table)
        run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), "-E", f"offset={PARTITION_AT}", str(part), f"{size // 1024}k"])
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _copy_tree(tree: Path, left: int) -> None:
    """Copies regular files, directories and symbolic links until there are that many bytes of them."""
    for source in SOURCES:
        for folder, folders, files in os.walk(source):
            folders.sort()
            target = tree / os.path.relpath(folder, "/usr")
            target.mkdir(parents=True, exist_ok=True)
            for name in sorted(files):
                path = Path(folder, name)
                info = path.lstat()
                if stat.S_ISREG(info.st_mode):
                    # Hard links would make the tree smaller than its sum.
                    left -= info.st_size
                    if left < 0:
                        return
                elif not stat.S_ISLNK(info.st_mode):
                    continue
                shutil.copy2(path, target / name, follow_symlinks=False)
                if stat.S_ISREG(info.st_mode):
                    # The ordinary user's rows read everything with every contender.
                    (target / name).chmod(0o644)


@dataclass(frozen=True)
class Frame:
    """Where a zstd frame lies."""

    start: int
    packed: int


def zstd_frames(image: Path) -> list[Frame]:
    """All frames of an image, by their blocks' headers; RFC 8878, section 3.1. Skippable ones are left out."""
    frames = []
    with image.open("rb") as file:
        end = image.stat().st_size
        at = 0
        while at < end:
            start = at
            file.seek(at)
            magic, descriptor = struct.unpack("<IB", file.read(5))
            if magic >> 4 == SKIPPABLE >> 4:
                file.seek(at + 4)
                at += 8 + struct.unpack("<I", file.read(4))[0]
                continue
            single = descriptor >> 5 & 1
            at += 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
            last = False
            while not last:
                file.seek(at)
                header = int.from_bytes(file.read(3), "little")
                last = bool(header & 1)
                # A block of one repeated byte holds that one.
                at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
            at += 4 * (descriptor >> 2 & 1)
            frames.append(Frame(start, at - start))
    return frames


def _add_seek_table(image: Path, size: int) -> None:
    """Appends the seek table of frames that each hold FRAME bytes of `size`."""
    frames = zstd_frames(image)
    lengths = [min(FRAME, size - start) for start in range(0, size, FRAME)]
    entries = b"".join(struct.pack("<II", frame.packed, length) for frame, length in zip(frames, lengths, strict=True))
    footer = struct.pack("<IBI", len(frames), 0, SEEKABLE)
    with image.open("ab") as out:
        out.write(struct.pack("<II", SKIPPABLE, len(entries) + len(footer)) + entries + footer)
