"""Row (q): machine disks and encrypted ones behind a slow web server."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import MIB
from measure import Goal, Row
from remote import DELAY_MS, FILES, Remote, Run
from remote_packed import CACHED
from uses import OURS

# nbdkit's filters as they come, and in large pieces: fewer requests for more bytes than are needed.
USUAL = ("readahead", "cache", "cache-on-read=true")
LARGE = ", by 1 MiB"
# qcow2's usual.
CLUSTER = 64 << 10
# A LUKS1 header and the material of one keyslot, 4000 stripes of 64 bytes: they end there.
LUKS_BEGINS = 256 << 10


@dataclass(frozen=True)
class Image:
    """One form of the disk."""

    key: str
    path: Path
    title: str
    theirs: str
    # From the server's address to a mounted tree.
    stacks: dict[str, Callable]
    # What a mount has to fetch, in words, and how many bytes that is.
    needed: tuple[str, Callable[[], int]]


@dataclass(frozen=True)
class RemoteMachine:
    """Mounts over HTTP and reads files spread over the tree."""

    remote: Remote

    def rows(self) -> list[Row]:
        """The same runs seen three ways; requests and bytes are those of the last one."""
        return [row for image in self._images() for row in self._of(image)]

    def _images(self) -> list[Image]:
        images, bench = self.remote.images, self.remote.bench
        qcow2, luks, key = images.large_qcow2, images.large_luks, images.key
        with_qemu, with_nbdkit = "nbdkit curl + qemu-nbd", "nbdkit curl"
        return [
            Image(
                "qcow2",
                qcow2,
                "qcow2",
                with_qemu,
                {
                    OURS: lambda url: bench.loopmount_tree(f"{url}/{qcow2.name}", False),
                    with_qemu: lambda url: bench.nbdkit_qcow2_tree(["curl", f"{url}/{qcow2.name}"], *USUAL),
                    with_qemu + LARGE: lambda url: bench.nbdkit_qcow2_tree(["curl", f"{url}/{qcow2.name}"], *CACHED),
                },
                ("the clusters needed", lambda: self._pieces(CLUSTER)),
            ),
            Image(
                "luks",
                luks,
                "LUKS",
                with_nbdkit,
                {
                    OURS: lambda url: bench.loopmount_tree(f"{url}/{luks.name}", False, f"--key-file={key}"),
                    with_nbdkit: lambda url: bench.nbdkit_tree(
                        ["curl", f"{url}/{luks.name}"], False, "luks", f"passphrase=+{key}", *USUAL
                    ),
                    with_nbdkit + LARGE: lambda url: bench.nbdkit_tree(
                        ["curl", f"{url}/{luks.name}"], False, "luks", f"passphrase=+{key}", *CACHED
                    ),
                },
                (
                    "the sectors that the kernel asks for",
                    lambda: LUKS_BEGINS + self.remote.last(f"luks {OURS}", lambda url: None).asked,
                ),
            ),
        ]

    def _of(self, image: Image) -> list[Row]:
        measured = {name: (lambda name=name, stack=stack: self._measure(image, name, stack)) for name, stack in image.stacks.items()}
        title = f"mount {image.title} over http with {DELAY_MS} ms per request and read {FILES} files, as root: "
        seconds = {name: (lambda measure=measure: measure()[0].seconds) for name, measure in measured.items()}
        digests = {name: (lambda measure=measure: measure()[1]) for name, measure in measured.items()}
        rows = [Row(f"q.{image.key}.time", f"{title}time", "s", seconds, digests, (), 2)]
        picked: tuple[tuple[str, str, Callable[[Run], float], list[Goal]], ...] = (
            (
                "requests",
                "",
                lambda run: run.requests,
                [Goal("at least 3 times fewer than nbdkit", lambda m: m[image.theirs] / max(m[OURS], 1), 3)],
            ),
            (
                "bytes",
                "MiB",
                lambda run: run.bytes / MIB,
                [
                    Goal(f"at most 1.3 times {image.needed[0]}", lambda m: m[OURS] * MIB / image.needed[1](), 1.3, at_least=False),
                ],
            ),
        )
        for key, unit, value, goals in picked:
            contenders = {
                name: (lambda name=name, stack=stack, value=value: value(self.remote.last(f"{image.key} {name}", stack)))
                for name, stack in image.stacks.items()
            }
            rows.append(Row(f"q.{image.key}.{key}", title + key, unit, contenders, {}, tuple(goals), 1))
        return rows

    def _measure(self, image: Image, name: str, stack) -> tuple[Run, str]:
        return self.remote.measure(f"{image.key} {name}", stack)

    def _pieces(self, piece: int) -> int:
        """Bytes of the pieces of the disk that hold the files and what leads to them."""
        return len({place // piece for place in self.remote.places}) * piece
