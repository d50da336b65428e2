#!/usr/bin/env python3
"""Serves one folder over HTTP with ranges, each answer late, and counts what it serves.

Several ranges in one request are one answer of several parts.

Usage: slow_http.py FOLDER DELAY_MS

Prints its port. GET /.counts gives "REQUESTS BYTES" so far, at once and uncounted.
"""

import email.utils
import http.server
import os
import re
import sys
import threading
import time

PIECE = 1 << 20
BOUNDARY = "00000000000000000017"


def parse(field: str, size: int) -> list[tuple[int, int]]:
    """First byte and end of each range that a Range field names and the file has."""
    ranges = []
    for first, last in re.findall(r"(\d*)-(\d*)", field.removeprefix("bytes=")):
        if first:
            ranges.append((int(first), min(size, int(last) + 1) if last else size))
        elif last:
            ranges.append((max(0, size - int(last)), size))
    return [(first, end) for first, end in ranges if first < end]


def parts(ranges: list[tuple[int, int]], size: int) -> list[tuple[bytes, int, int]]:
    """A body of several parts as nginx sends it: what comes before each range, and the range."""
    pieces = []
    for first, end in ranges:
        head = (
            f"\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Range: bytes {first}-{end - 1}/{size}\r\n\r\n"
        )
        pieces.append((head.encode(), first, end))
    pieces.append((f"\r\n--{BOUNDARY}--\r\n".encode(), 0, 0))
    return pieces


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # The head goes out with the first bytes, and small answers at once.
    wbufsize = 64 << 10
    disable_nagle_algorithm = True
    folder, delay = "", 0.0
    lock = threading.Lock()
    requests = sent = 0

    def do_HEAD(self) -> None:  # noqa: N802
        """What a GET would say."""
        self._answer(body=False)

    def do_GET(self) -> None:  # noqa: N802
        """A file, or a range of it."""
        if self.path == "/.counts":
            text = f"{Handler.requests} {Handler.sent}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        else:
            self._answer(body=True)

    def _answer(self, body: bool) -> None:
        with Handler.lock:
            Handler.requests += 1
        time.sleep(self.delay)
        path = os.path.join(self.folder, os.path.basename(self.path))
        try:
            file = open(path, "rb")
        except OSError:
            self.send_error(404)
            return
        with file:
            info = os.fstat(file.fileno())
            field = self.headers.get("Range", "")
            ranges = parse(field, info.st_size)
            if field.startswith("bytes=") and not ranges:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{info.st_size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            pieces = [(b"", *(ranges or [(0, info.st_size)])[0])]
            self.send_response(206 if ranges else 200)
            if len(ranges) > 1:
                pieces = parts(ranges, info.st_size)
                self.send_header("Content-Type", f"multipart/byteranges; boundary={BOUNDARY}")
            elif ranges:
                first, end = ranges[0]
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{info.st_size}")
            length = sum(len(head) + end - first for head, first, end in pieces)
            self.send_header("Content-Length", str(length))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{info.st_mtime_ns:x}-{info.st_size:x}"')
            self.send_header("Last-Modified", email.utils.formatdate(info.st_mtime, usegmt=True))
            self.end_headers()
            if body:
                for head, first, end in pieces:
                    if not (self._write(head) and self._send(file, first, end)):
                        break

    def _send(self, file, first: int, end: int) -> bool:
        file.seek(first)
        while first < end:
            piece = file.read(min(PIECE, end - first))
            if not self._write(piece):
                return False
            first += len(piece)
        return True

    def _write(self, piece: bytes) -> bool:
        try:
            self.wfile.write(piece)
        except OSError:
            # The client has heard enough.
            self.close_connection = True
            return False
        with Handler.lock:
            Handler.sent += len(piece)
        return True

    def log_message(self, *_) -> None:
        """Silence."""


def main() -> None:
    """Serves until it is killed."""
    Handler.folder, Handler.delay = sys.argv[1], int(sys.argv[2]) / 1000
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
