#!/usr/bin/env python3
"""A TCP proxy that makes a line longer: bytes arrive as if the way there and back took some milliseconds more.

    bench/delay.py --to 127.0.0.1:1234 --delay 5      says where it listens, until it is ended
    bench/delay.py --check                            measures itself: round trip and bandwidth

Each piece of a stream is passed on half of the delay after it came, in order, and up to 16 MiB in each direction are on their
way: latency is added, bandwidth is not taken. A connection's first bytes wait a whole delay longer, as for the handshake. What
this cannot show is the kernel's own slow start and window: its acknowledgements come from here, at once.
"""

import argparse
import contextlib
import pathlib
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time

from machine import Failed

PIECE = 256 << 10
ON_THEIR_WAY = 16 << 20  # bytes, in one direction
OVERHEAD = 128  # bytes that a piece takes here beside its own
HERE = "127.0.0.1"


class Proxy:
    """Runs in a process of its own, so that nothing else here slows it down."""

    def __init__(self, port, delay):
        self.process = subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).resolve(), "--to", f"{HERE}:{port}", "--delay", str(delay)],
            stdout=subprocess.PIPE, text=True,
        )
        try:
            address = self.process.stdout.readline()
            if not address:
                raise Failed(f"the proxy to port {port} ended with status {self.process.wait()}")
        except BaseException:
            self.stop()
            raise
        self.port = int(address.rpartition(":")[2])

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Flight(queue.Queue):
    """The pieces of one direction, where `maxsize` counts bytes: many small ones are as good as a few large ones."""

    def _init(self, maxsize):
        super()._init(maxsize)
        self.bytes = 0

    def _qsize(self):
        return self.bytes

    def _put(self, item):
        super()._put(item)
        self.bytes += OVERHEAD + len(item[1])

    def _get(self):
        item = super()._get()
        self.bytes -= OVERHEAD + len(item[1])
        return item


def serve(listener, to, delay):
    while True:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(to)
        except OSError:
            near.close()  # that is what the other end would have seen
            continue
        open_from = time.monotonic() + delay
        for source, sink in ((near, far), (far, near)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=carry, args=(source, sink, delay / 2, open_from), daemon=True).start()


def carry(source, sink, delay, open_from):
    """One direction of a connection, until it ends; the other one may go on."""
    with contextlib.suppress(OSError):
        if delay:
            pieces = Flight(ON_THEIR_WAY)
            threading.Thread(target=deliver, args=(pieces, sink), daemon=True).start()
            try:
                while piece := source.recv(PIECE):
                    pieces.put((max(time.monotonic(), open_from) + delay, piece))
            finally:
                pieces.put((time.monotonic() + delay, b""))
            return
        buffer = memoryview(bytearray(PIECE))
        while length := source.recv_into(buffer):
            sink.sendall(buffer[:length])
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def deliver(pieces, sink):
    while True:
        due, piece = pieces.get()
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        try:
            if not piece:
                return sink.shutdown(socket.SHUT_WR)
            sink.sendall(piece)
        except OSError:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)  # wakes who reads from it
            while piece:
                _, piece = pieces.get()  # nobody wants it, and whoever puts it must not hang
            return None


def check():
    """Whether it does what it says. The machine has to be quiet for that."""
    amount, good = 1 << 30, True
    for delay in (0, 5):
        with socket.create_server((HERE, 0)) as echo:
            threading.Thread(target=answer, args=(echo,), daemon=True).start()
            proxy = Proxy(echo.getsockname()[1], delay)
            try:
                with socket.create_connection((HERE, proxy.port)) as talk:
                    talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    trips = []
                    for _ in range(200):
                        start = time.monotonic()
                        talk.sendall(b"?")
                        talk.recv(1)
                        trips.append(time.monotonic() - start)
                with socket.create_connection((HERE, proxy.port)) as talk:
                    start = time.monotonic()
                    talk.sendall(b"!")
                    piece, sent = bytes(PIECE), 1
                    while sent < amount:
                        talk.sendall(piece)
                        sent += PIECE
                    talk.shutdown(socket.SHUT_WR)
                    count = int(talk.makefile().read())
                    rate = count / (time.monotonic() - start) / 1e6
            finally:
                proxy.stop()
        trip = statistics.median(trips[1:]) * 1e3
        print(f"delay {delay} ms: round trip {trip:.2f} ms, {rate:.0f} MB/s")
        good &= count == sent and delay <= trip < delay + 1 and rate > 300
    if not good:
        sys.exit("that is not what the proxy is for: is the machine busy?")


def answer(echo):
    """Gives single bytes back; or, where the first one is `!`, says at the end how many came."""
    for _ in range(2):
        talk, _ = echo.accept()
        talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer, count = bytearray(PIECE), 0
        with talk:
            while length := talk.recv_into(buffer):
                if not count and buffer[:1] == b"?":
                    talk.sendall(buffer[:length])
                    continue
                count += length
            if count:
                talk.sendall(str(count).encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", metavar="HOST:PORT", help="where bytes are passed on to")
    parser.add_argument("--delay", type=float, default=5, metavar="MS", help="of a round trip [default: %(default)s]")
    parser.add_argument("--check", action="store_true", help="measure it instead")
    options = parser.parse_args()
    if options.check:
        return check()
    if not options.to:
        parser.error("--to says where bytes are passed on to")
    host, _, port = options.to.rpartition(":")
    with contextlib.suppress(KeyboardInterrupt), socket.create_server((HERE, 0)) as listener:
        print(f"{HERE}:{listener.getsockname()[1]}", flush=True)
        serve(listener, (host, int(port)), options.delay / 1e3)


if __name__ == "__main__":
    main()
