#!/usr/bin/env python3
"""Serves one folder over HTTP with ranges, each answer late, and counts what it serves.

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
            first, end = 0, info.st_size
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if asked and asked[1]:
                first = int(asked[1])
                end = min(end, int(asked[2]) + 1) if asked[2] else end
            elif asked and asked[2]:
                first = max(0, end - int(asked[2]))
            if first >= end:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{info.st_size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{info.st_size}")
            self.send_header("Content-Length", str(end - first))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{info.st_mtime_ns:x}-{info.st_size:x}"')
            self.send_header("Last-Modified", email.utils.formatdate(info.st_mtime, usegmt=True))
            self.end_headers()
            if body:
                self._send(file, first, end)

    def _send(self, file, first: int, end: int) -> None:
        file.seek(first)
        while first < end:
            piece = file.read(min(PIECE, end - first))
            try:
                self.wfile.write(piece)
            except OSError:
                # The client has heard enough.
                self.close_connection = True
                return
            first += len(piece)
            with Handler.lock:
                Handler.sent += len(piece)

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
