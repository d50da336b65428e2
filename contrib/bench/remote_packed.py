"""Row (j): compressed images and archives behind a slow web server."""

import bisect
import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from images import FRAME, MIB, PZSTD_FRAME, zstd_frames
from measure import Goal, Row
from remote import DELAY_MS, FILES, Remote, Run, xz_needed
from uses import CHECKPOINTS, KNOWN, OURS

THEIRS = "nbdkit curl"
# Filters between nbdkit's decoders and curl, and how they serve best.
CACHED = ("readahead", "cache", "cache-on-read=true", "cache-min-block-size=1M")
# Where a file begins that is the first one in a tar.
TAR_HEADER = 512
PIECE = 64 << 10


@dataclass(frozen=True)
class Image:
    """One wrapping of the disk."""

    key: str
    path: Path
    title: str
    # nbdkit's filters for it, if there are such.
    filters: tuple[str, ...]
    # What a mount has to fetch, in words and in bytes.
    needed: tuple[str, Callable[[], int]]
    # The same for a second mount, where the first one has to pass everything.
    needed_again: tuple[str, Callable[[], int]] | None = None


@dataclass(frozen=True)
class RemotePacked:
    """Mounts over HTTP and reads files spread over the tree."""

    remote: Remote
    _worked_out: dict[str, int] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The same runs seen three ways; requests and bytes are those of the last one."""
        return [row for image in self._images() for row in self._of(image)]

    def _images(self) -> list[Image]:
        images = self.remote.images
        return [
            Image(
                "tar",
                images.tar_xz,
                "tar.xz with blocks of 16 MiB",
                ("tar", f"tar-entry={images.raw.name}", "xz"),
                ("the xz blocks needed", lambda: xz_needed(images.tar_xz, {0, *(place + TAR_HEADER for place in self.remote.places)})),
            ),
            Image(
                "gz",
                images.gz,
                "raw.gz",
                ("gzip",),
                ("the file, which has to be passed once", lambda: images.gz.stat().st_size),
                ("what lies between the checkpoints needed", lambda: gzip_needed(images.gz, self.remote.places)),
            ),
            Image(
                "zst",
                images.seekable,
                "raw.zst in frames of 4 MiB with a table (nbdkit has no zstd filter)",
                (),
                ("the frames needed", lambda: zstd_needed(images.seekable, self.remote.places, FRAME)),
            ),
            Image(
                "pzst",
                images.pzst,
                "raw.zst by pzstd, in frames of unknown size (nbdkit has no zstd filter)",
                (),
                ("the file, which has to be passed once", lambda: images.pzst.stat().st_size),
                ("the frames needed", lambda: zstd_needed(images.pzst, self.remote.places, PZSTD_FRAME)),
            ),
        ]

    def _of(self, image: Image) -> list[Row]:
        stacks = self._stacks(image)
        measured = {name: (lambda name=name, stack=stack: self._measure(image, name, stack)) for name, stack in stacks.items()}
        title = f"mount {image.title} over http with {DELAY_MS} ms per request and read {FILES} files, as root: "
        seconds = {name: (lambda measure=measure: measure()[0].seconds) for name, measure in measured.items()}
        digests = {name: (lambda measure=measure: measure()[1]) for name, measure in measured.items()}
        rows = [Row(f"j.{image.key}.time", f"{title}time", "s", seconds, digests, (), 3)]
        picked: tuple[tuple[str, str, Callable[[Run], float], list[Goal]], ...] = (
            ("requests", "", lambda run: run.requests, self._requests(image, stacks)),
            ("bytes", "MiB", lambda run: run.bytes / MIB, self._bytes(image)),
        )
        for key, unit, value, goals in picked:
            contenders = {name: (lambda name=name, stack=stack, value=value: value(self._last(image, name, stack))) for name, stack in stacks.items()}
            rows.append(Row(f"j.{image.key}.{key}", title + key, unit, contenders, {}, tuple(goals), 1))
        return rows

    def _stacks(self, image: Image) -> dict[str, Callable]:
        """From the server's address to a mounted tree."""
        bench, name = self.remote.bench, image.path.name
        stacks: dict[str, Callable] = {OURS: lambda url: bench.loopmount_tree(f"{url}/{name}", False)}
        if image.needed_again:
            kept = functools.cache(lambda: bench.place(False))
            stacks[KNOWN] = lambda url: bench.loopmount_tree(f"{url}/{name}", False, kept=kept())
        if image.filters:
            stacks[THEIRS] = lambda url: bench.nbdkit_tree(["curl", f"{url}/{name}"], False, *image.filters, *CACHED)
        return stacks

    def _measure(self, image: Image, name: str, stack) -> tuple[Run, str]:
        return self.remote.measure(f"{image.key} {name}", stack, name == KNOWN)

    def _last(self, image: Image, name: str, stack) -> Run:
        return self.remote.last(f"{image.key} {name}", stack, name == KNOWN)

    @staticmethod
    def _requests(image: Image, stacks: dict[str, Callable]) -> list[Goal]:
        """Fewer than nbdkit's, where it can open the image at all."""
        if THEIRS not in stacks:
            return []
        return [
            Goal(f"{name}: at least 3 times fewer than nbdkit", lambda m, name=name: m[THEIRS] / max(m[name], 1), 3)
            for name in (OURS, KNOWN)
            if name in stacks
        ]

    def _bytes(self, image: Image) -> list[Goal]:
        return [
            Goal(
                f"{name}: at most 1.3 times {needed[0]}",
                lambda m, name=name, needed=needed: m[name] * MIB / self._once(f"{image.key} {name}", needed[1]),
                1.3,
                at_least=False,
            )
            for name, needed in ((OURS, image.needed), (KNOWN, image.needed_again))
            if needed
        ]

    def _once(self, key: str, work_out: Callable[[], int]) -> int:
        if key not in self._worked_out:
            self._worked_out[key] = work_out()
        return self._worked_out[key]


def zstd_needed(image: Path, places: set[int], length: int) -> int:
    """Compressed bytes of the frames, each with `length` bytes of the disk, that hold one of these places."""
    frames = zstd_frames(image)
    return sum(frames[number].packed for number in {place // length for place in places})


def gzip_needed(image: Path, places: set[int]) -> int:
    """Compressed bytes between the checkpoints around these places, to PIECE bytes."""
    decoder = zlib.decompressobj(wbits=31)
    # How much of the disk is known after so many pieces.
    known = [0]
    with image.open("rb") as file:
        while piece := file.read(PIECE):
            known.append(known[-1] + len(decoder.decompress(piece)))
    at = lambda place: bisect.bisect_left(known, place) * PIECE
    spans = {place // CHECKPOINTS for place in places}
    return sum(at((span + 1) * CHECKPOINTS) - at(span * CHECKPOINTS) for span in spans)
