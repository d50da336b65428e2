"""Starting, watching and ending the processes that are measured, and the load of the others."""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
USER = "nobody"
PR_SET_CHILD_SUBREAPER = 36
# How often a state is looked at that nothing announces, and for how long.
LOOK = 0.001
PATIENCE = 120.0
# Children that somebody waits for.
_watched: set[int] = set()


def adopt_orphans() -> None:
    """Daemons started below this process become its children, so that their CPU time is ours."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def as_user(command: list[str], home: Path, kept: Path | None = None) -> list[str]:
    """`command` as a user without rights, who has a home and a runtime folder; what it keeps goes to
    `kept`."""
    env = ["env", f"HOME={home}", f"XDG_RUNTIME_DIR={home}", f"TMPDIR={kept or home}"]
    if kept is not None:
        env.append(f"XDG_CACHE_HOME={kept}")
    group = pwd.getpwnam(USER).pw_gid
    return ["setpriv", f"--reuid={USER}", f"--regid={group}", "--clear-groups", *env, *command]


def run(command: list[str], **more) -> str:
    """Runs `command` to its end; what it prints. Its complaints are shown only when it fails.

    However this ends, nothing of the command is left: it would keep a mount busy."""
    # A session of its own: ^C is for us, who then take things down in order.
    more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    process = subprocess.Popen(command, start_new_session=True, text=True, errors="replace", **more)
    _watched.add(process.pid)
    try:
        out, complaints = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        _watched.discard(process.pid)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}\n{out or ''}{complaints or ''}")
    return out or ""


def unmount(command: list[str]) -> None:
    """Runs an unmounting `command`; what was killed a moment ago may still hold the mount."""
    deadline = time.monotonic() + 10
    while True:
        try:
            run(command)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def daemon(command: list[str], **more):
    """`command` in the background until the end of the block."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, start_new_session=True, **{"stdin": silent, "stdout": silent, "stderr": silent, **more})
    _watched.add(process.pid)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _watched.discard(process.pid)


def wait_until(true, what: str, process: subprocess.Popen | None = None) -> None:
    """Waits for a state that a daemon brings about."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{what}: {' '.join(process.args)} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not after {PATIENCE:.0f} s")
        time.sleep(LOOK)


def children() -> dict[int, int]:
    """The parent of each process."""
    return {pid: int(fields[1]) for pid, fields in _stats().items()}


def descendants() -> list[int]:
    """All processes below this one."""
    parents = children()
    found, new = [], [os.getpid()]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def reap() -> None:
    """Buries adopted daemons that have ended: their CPU time counts as ours from then on."""
    for pid, fields in _stats().items():
        if fields[0] == "Z" and int(fields[1]) == os.getpid() and pid not in _watched:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _stats() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat behind the name, by process."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry)] = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
    return found


class Load:
    """CPU time that processes other than the measured ones take, the kernel's threads excepted."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._others = self._now()

    def others(self) -> float:
        """Of one core, since the beginning; of the first second at least, since times come in ticks."""
        return max(0.0, self._now() - self._others) / max(time.monotonic() - self._since, 1.0)

    @staticmethod
    def _now() -> float:
        stats = _stats()
        with open("/proc/stat") as file:
            # user nice system idle iowait irq softirq
            fields = [int(field) for field in file.readline().split()[1:8]]
        busy = sum(fields) - fields[3] - fields[4]
        ours = {os.getpid(), *descendants()}
        # 11..14 are utime, stime, cutime, cstime; kthreadd is process 2.
        measured = sum(sum(map(int, stats[pid][11:15])) for pid in ours if pid in stats)
        kernel = sum(int(fields[12]) for pid, fields in stats.items() if pid == 2 or fields[1] == "2")
        return (busy - measured - kernel) / TICKS


def memory(pids: list[int], field: str) -> int:
    """The sum of a field of /proc/PID/status, in bytes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path("/proc", str(pid), "status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1]) * 1024
    return total


def files_in(folder: Path) -> int:
    """What the files in a folder take on disk, in bytes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def unlinked(pids: list[int]) -> int:
    """What files without a name that these processes hold open take on disk, in bytes."""
    sizes = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path("/proc", str(pid), "fd").iterdir():
                name = os.readlink(entry)
                # Other names without a slash and memfd are no disk.
                if name.startswith("/") and name.endswith(" (deleted)") and not name.startswith(("/memfd:", "/dev/")):
                    info = entry.stat()
                    sizes[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(sizes.values())


def end_gracefully_on_signals() -> None:
    """SIGTERM and SIGHUP unwind as ^C does, so that everything is taken down."""

    def interrupt(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
