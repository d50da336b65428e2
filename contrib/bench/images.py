"""The images that the benchmark reads, made once and kept in a cache folder."""

import functools
import os
import shutil
import stat
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
# What each thread of `xz -T0` compresses on its own.
BLOCK = "16MiB"
# Changed when an image is made in another way: then those of earlier runs are of no use.
RECIPE = "2"


class Images:
    """The same disk three times, each made when it is first asked for. All are readable by everybody."""

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
        return self._made("disk.raw", f"from files of {', '.join(SOURCES)}", lambda part: _disk(part, tree))

    @functools.cached_property
    def multi(self) -> Path:
        """In blocks of 16 MiB, as a distribution would publish it."""
        return self._compressed("disk.multi.raw.xz", "-T0", f"--block-size={BLOCK}")

    @functools.cached_property
    def single(self) -> Path:
        """In one block."""
        return self._compressed("disk.single.raw.xz", "-T1")

    def _compressed(self, name: str, *options: str) -> Path:
        def compress(part: Path) -> None:
            with part.open("wb") as out:
                run(["xz", *options, "-c", str(self.raw)], stdout=out)

        return self._made(name, f"with xz {' '.join(options)}, takes minutes", compress)

    def _made(self, name: str, how: str, make) -> Path:
        """A file that appears complete or not at all."""
        path = self._cache / name
        if path.exists():
            return path
        self._say(f"making {path} {how}")
        part = self._cache / f"{name}.part"
        part.unlink(missing_ok=True)
        try:
            make(part)
            part.chmod(0o644)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        return path


def _disk(part: Path, tree: Path) -> None:
    """A GPT with one ext4 that holds the tree."""
    shutil.rmtree(tree, ignore_errors=True)
    try:
        _copy_tree(tree)
        size = TREE_BYTES + SLACK
        with part.open("wb") as disk:
            disk.truncate(PARTITION_AT + size + TAIL)
        # 8304: "Linux root (x86-64)".
        table = ["sgdisk", "-n", f"1:{PARTITION_AT // 512}:+{size // 1024}K", "-t", "1:8304", str(part)]
        run(table)
        run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), "-E", f"offset={PARTITION_AT}", str(part), f"{size // 1024}k"])
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _copy_tree(tree: Path) -> None:
    """Copies regular files, directories and symbolic links until there is enough of them."""
    left = TREE_BYTES
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
