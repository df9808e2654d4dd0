"""Small sets of photos and masks for the tools that make shards."""

import http.server
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from inpaint_dist.data.sharding import ShardingConfig


class PhotosAndMasks(NamedTuple):
    photos: Path
    masks: Path

    def config(self, out: Path, **options) -> ShardingConfig:
        """Eight shards of at most 3 photos, one photo broken."""
        options = {"size": 32, "workers": 1, "val_fraction": 0.25, "samples_per_shard": 3, **options}
        return ShardingConfig(photos=(str(self.photos),), masks=(str(self.masks),), out=out, **options)

    def words(self, out: Path, *more: str) -> list[str]:
        """The same as flags."""
        return [
            *(str(self.photos), "--masks", str(self.masks), "--out", str(out), "--size", "32", "--workers", "1"),
            *("--val-fraction", "0.25", "--samples-per-shard", "3", *more),
        ]


@pytest.fixture(scope="session")
def photos_and_masks(tmp_path_factory: pytest.TempPathFactory) -> PhotosAndMasks:
    root = tmp_path_factory.mktemp("small")
    y, x = np.mgrid[0:40, 0:56].astype(np.uint8)
    for folder in ("photos/deep", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(20):
        place = "photos/deep" if number % 3 else "photos"
        cv2.imwrite(str(root / place / f"{number:02d}.jpg"), np.dstack([x * 4, y * 5, np.full_like(x, number * 12)]))
    (root / "photos/broken.jpg").write_bytes((root / "photos/00.jpg").read_bytes()[:-99])
    for number in range(5):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:12, number * 5 : number * 5 + 8 if number else 0] = 255
        cv2.imwrite(str(root / f"masks/{number}.png"), mask)
    return PhotosAndMasks(root / "photos", root / "masks")


class Server:
    """A folder over http on this machine: counts what is asked for, and fails as it is told to.

    `faults` maps a file's name to what happens to the requests for it, one after the other: an HTTP status, "cut",
    "flip", "hang", or "slow"; then it is served well.
    """

    def __init__(self, folder: Path):
        self.folder, self.requests, self.faults = folder, Counter[str](), dict[str, list[int | str]]()
        self.headers, self.not_modified = list[tuple[str, dict[str, str]]](), 0
        self.released, self._lock = threading.Event(), threading.Lock()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/set"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.partition("?")[0].removeprefix("/set/")
        with self._lock:
            self.requests[name] += 1
            self.headers.append((request.path, dict(request.headers)))
            fault = self.faults.get(name, []).pop(0) if self.faults.get(name) else None
        path = self.folder / name
        if fault == "hang":
            self.released.wait(60)
            return
        if isinstance(fault, int) or not path.is_file():
            request.send_error(fault if isinstance(fault, int) else 404)
            return
        data = path.read_bytes()
        tag = f'"{sha256(data).hexdigest()}"'
        if request.headers.get("If-None-Match") == tag:
            self.not_modified += 1
            request.send_response(304)
            request.end_headers()
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", tag)
        request.end_headers()
        if fault == "flip":
            data = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        if fault == "slow":
            time.sleep(0.3)
        request.wfile.write(data[: len(data) // 2] if fault == "cut" else data)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(ConnectionError):
                    server._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def server(shards: Path, tmp_path: Path) -> Iterator[Server]:
    """The small shards of all tests, in a copy that a test may change."""
    served = Server(Path(shutil.copytree(shards, tmp_path / "served")))
    yield served
    served.close()
