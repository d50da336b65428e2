"""The contenders: each way to make an image readable, as a block that takes it down again."""

import contextlib
import functools
import itertools
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import processes
from processes import daemon, run, unmount, wait_until

# nbdkit refuses longer blocks unless told otherwise; this is the most it can.
LONGEST_BLOCK = "xz-max-block=4G"
_numbers = itertools.count()


@dataclass(frozen=True)
class Bench:
    """Where the measured programs are, and where they may work."""

    loopmount: str
    work: Path
    ratarmount: str

    def place(self, user: bool) -> Path:
        """A new empty folder that belongs to who will use it."""
        place = self.work / f"{next(_numbers)}"
        place.mkdir()
        if user:
            os.chown(place, *_ids())
        return place

    @contextlib.contextmanager
    def kept(self, user: bool):
        """A folder for what a contender keeps of an image, which goes with all that is in it."""
        kept = self.place(user)
        try:
            yield kept
        finally:
            shutil.rmtree(kept, ignore_errors=True)

    @staticmethod
    def give(path: Path) -> None:
        """Makes something the ordinary user's."""
        os.chown(path, *_ids())

    def command(self, command: list[str], user: bool, kept: Path | None = None) -> list[str]:
        """`command` as root or as the ordinary user, with its cache in `kept`; a user's temporary files too."""
        if user:
            return processes.as_user(command, self.home(), kept)
        return command if kept is None else ["env", f"XDG_CACHE_HOME={kept}", *command]

    def home(self) -> Path:
        """The ordinary user's."""
        home = self.work / "home"
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, *_ids())
        return home

    @contextlib.contextmanager
    def loopmount_tree(self, image: str, user: bool, *options: str, kept: Path | None = None):
        """`loopmount IMAGE DIR`, with the cache in `kept`; else nothing is known of the image."""
        yield from self._loopmount(image, self.place(user), user, kept, *options)

    @contextlib.contextmanager
    def loopmount_file(self, image: str, user: bool, *options: str, kept: Path | None = None):
        """`loopmount --fuse IMAGE FILE`."""
        yield from self._loopmount(image, self.place(user) / "disk", user, kept, "--fuse", *options)

    def _loopmount(self, image: str, target: Path, user: bool, kept: Path | None, *options: str):
        with contextlib.ExitStack() as undo:
            kept = kept or undo.enter_context(self.kept(user))
            run(self.command([self.loopmount, *options, image, str(target)], user, kept))
            try:
                yield target
            finally:
                unmount(self.command([self.loopmount, "-u", str(target)], user))
                processes.reap()

    @contextlib.contextmanager
    def nbdkit_file(self, source: list[str], user: bool, *filters: str, kept: Path | None = None, writable: bool = False):
        """`nbdkit PLUGIN ...` shown as a file by nbdfuse; a filter is its name, or name=value of it."""
        place = self.place(user)
        with self._nbdkit(place, source, user, *filters, kept=kept, writable=writable) as socket:
            with self._nbdfuse(place, socket, user, writable) as target:
                yield target

    @contextlib.contextmanager
    def _nbdkit(self, place: Path, source: list[str], user: bool, *filters: str, kept: Path | None = None, writable: bool = False):
        """The server alone: its socket."""
        socket = place / "socket"
        names = [f"--filter={name}" for name in filters if "=" not in name]
        values = [value for value in filters if "=" in value]
        mode = [] if writable else ["--readonly"]
        server = ["nbdkit", "--foreground", *mode, f"--unix={socket}", *names, *source, *values]
        with daemon(self.command(server, user, kept)) as serving:
            wait_until(socket.exists, "nbdkit", serving)
            yield socket

    @contextlib.contextmanager
    def _nbdfuse(self, place: Path, socket: Path, user: bool, writable: bool = False):
        target = place / "disk"
        target.touch()
        if user:
            self.give(target)
        mode = [] if writable else ["--readonly"]
        client = ["nbdfuse", *mode, str(target), f"nbd+unix:///?socket={socket}"]
        with self._fuse(client, target, user):
            yield target

    @contextlib.contextmanager
    def qemu_file(self, driver: str, image: Path, user: bool, key: Path | None = None, writable: bool = False):
        """`qemu-nbd` shown as a file by nbdfuse."""
        place = self.place(user)
        with self._qemu(place, self.qemu_options(driver, image, key), user, writable) as socket:
            with self._nbdfuse(place, socket, user, writable) as target:
                yield target

    @staticmethod
    def qemu_options(driver: str, image: Path, key: Path | None = None) -> list[str]:
        """How programs of qemu are told what an image is."""
        secret = [] if key is None else ["--object", f"secret,id=key,file={key}"]
        opts = "" if key is None else ",key-secret=key"
        return [*secret, "--image-opts", f"driver={driver},file.driver=file,file.filename={image}{opts}"]

    @contextlib.contextmanager
    def _qemu(self, place: Path, options: list[str], user: bool, writable: bool = False):
        socket = place / "qemu"
        mode = [] if writable else ["--read-only"]
        # As many connections as nbdfuse makes.
        server = ["qemu-nbd", "--persistent", "--shared=0", f"--socket={socket}", *mode, *options]
        with daemon(self.command(server, user)) as serving:
            wait_until(socket.exists, "qemu-nbd", serving)
            yield socket

    @contextlib.contextmanager
    def nbdkit_qcow2_tree(self, source: list[str], *filters: str):
        """A qcow2 that nbdkit reads and qemu-nbd understands, its first partition mounted by the kernel."""
        place = self.place(False)
        with self._nbdkit(place, source, False, *filters) as raw:
            options = ["--image-opts", f"driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path={raw}"]
            with self._qemu(place, options, False) as socket, self._nbdfuse(place, socket, False) as disk:
                with self.kernel_tree(disk) as target:
                    yield target

    @contextlib.contextmanager
    def nbdkit_tree(self, source: list[str], user: bool, *filters: str):
        """The same, its first partition mounted: by loop and the kernel, or as a user by fuse2fs."""
        if user:
            with self.nbdkit_file(source, True, "partition", "partition=1", *filters) as disk:
                target = self.place(True)
                client = ["fuse2fs", "-f", "-o", "ro", str(disk), str(target)]
                with self._fuse(client, target, True):
                    yield target
        else:
            with self.nbdkit_file(source, False, *filters) as disk, self.kernel_tree(disk) as target:
                yield target

    @contextlib.contextmanager
    def ratarmount_file(self, image: Path, inside: str, user: bool, kept: Path | None = None):
        """The file `inside` of an archive, or the only one of a compressed file; the index goes to `kept`."""
        with contextlib.ExitStack() as undo:
            kept = kept or undo.enter_context(self.kept(user))
            target = self.place(user)
            # All cores, as the others have them.
            client = [self.ratarmount, "-f", "-P", "0", "--index-folders", str(kept), str(image), str(target)]
            with self._fuse(client, target, user, kept):
                yield target / inside

    @contextlib.contextmanager
    def _fuse(self, command: list[str], target: Path, user: bool, kept: Path | None = None):
        """A FUSE program that stays in the foreground."""
        with daemon(self.command(command, user, kept)) as serving:
            wait_until(lambda: _is_mounted(target), command[0], serving)
            try:
                yield
            finally:
                unmount(self.command(["fusermount3", "-u", str(target)], user))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    serving.wait(10)

    @contextlib.contextmanager
    def loop_device(self, disk: Path, *options: str):
        """The kernel's own loop device."""
        command = ["losetup", "--find", "--show", "--read-only", *options, str(disk)]
        device = run(command).strip()
        try:
            yield Path(device)
        finally:
            run(["losetup", "--detach", device])

    @contextlib.contextmanager
    def kernel_tree(self, disk: Path):
        """The first partition of a disk, mounted as `mount -o loop` would."""
        target = self.place(False)
        # One command as a user would type it, with the offset that fdisk tells.
        run(["mount", "-t", "ext4", "-o", "ro,loop,offset=1048576", str(disk), str(target)])
        try:
            yield target
        finally:
            unmount(["umount", str(target)])


@functools.cache
def has_filter(name: str) -> bool:
    """Whether this nbdkit has a filter: that for bzip2 came late."""
    lines = run(["nbdkit", "--dump-config"]).splitlines()
    folder = next(line.removeprefix("filterdir=") for line in lines if line.startswith("filterdir="))
    return Path(folder, f"nbdkit-{name}-filter.so").exists()


def _ids() -> tuple[int, int]:
    entry = pwd.getpwnam(processes.USER)
    return entry.pw_uid, entry.pw_gid


def _is_mounted(target: Path) -> bool:
    # Not stat(2): a FUSE mount of another user cannot be looked into, even by root.
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split()[4] == str(target) for line in mounts)
