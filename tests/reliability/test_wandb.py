"""A wandb server that never answers, or no longer, costs seconds once, and no step; see tests/tracking too."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inpaint_dist.tracking import tracker


@pytest.fixture
def silent_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """Its address, and the connections that it holds without a word."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", held
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    for connection in held:
        connection.close()


class Server(ThreadingHTTPServer):
    """Answers what wandb asks a server for until it is muted; then it takes connections and says nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        self.muted, self.unmuted = threading.Event(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if server.muted.is_set():
                    server.unmuted.wait()
                    return
                data: dict[str, Any] = {"model": None}
                if "mutation UpsertBucket" in asked.get("query", ""):
                    project = {"name": "inpaint-dist", "entity": {"name": "nobody"}}
                    data["upsertBucket"] = {"bucket": {"name": asked["variables"]["name"], "project": project}}
                answer = json.dumps({"data": data}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on the screen."""

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.unmuted.set()
        server.shutdown()
        thread.join(10)


def logging_in(nursery: Any, run: Path, address: str) -> Any:
    """A run of two ranks and 40 steps, for which wandb is where the address says."""
    home = run.parent / "home"
    home.mkdir()
    return nursery.start(
        run,
        *("--report-to", "wandb", "--max-steps", "40"),
        *("--checkpoint-every", "1000", "--eval-every", "1000", "--sample-every", "1000"),
        world=2,
        HOME=str(home),
        WANDB_BASE_URL=address,
        WANDB_API_KEY="a" * 40,
        WANDB_ERROR_REPORTING="false",
    )


def test_a_server_that_hangs_costs_two_ranks_seconds_once_and_no_step(
    silent_server: tuple[str, list[socket.socket]],
    nursery: Any,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
):
    address, held = silent_server
    assert tracker.INIT_TIMEOUT <= 9
    run = tmp_path / "run"
    started = time.monotonic()
    ranks = logging_in(nursery, run, address)
    ranks.until("wandb: offline (")
    record_property("seconds until training begins", round(time.monotonic() - started, 1))
    asked = len(held)
    assert asked >= 1
    assert ranks.ended(60) == [0, 0]
    record_property("connections after that", len(held) - asked)
    assert len(held) == asked
    said = ranks.said()
    assert said.count("wandb: cannot start online: CommError") == said.count("wandb: offline (CommError") == 1
    assert "Traceback" not in said
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 41)]
    assert all("g/loss" in line for line in lines)
    assert len([*(run / "wandb").glob("offline-run-*/*.wandb")]) == 1


def test_a_server_that_falls_silent_in_the_middle_costs_seconds_at_the_end_and_is_sent_the_rest_later(
    server: Server, nursery: Any, tmp_path: Path, record_property: Callable[[str, object], None]
):
    assert tracker.FINISH_TIMEOUT <= 10
    run = tmp_path / "run"
    ranks = logging_in(nursery, run, f"http://127.0.0.1:{server.server_port}")
    ranks.until("wandb: http://127.0.0.1")
    ranks.until("step 5/40")
    server.muted.set()
    ranks.until("step 40/40")
    stepped = time.monotonic()
    assert ranks.ended(60) == [0, 0]
    record_property("seconds at the end of a run whose server fell silent", round(time.monotonic() - stepped, 1))
    (folder,) = (run / "wandb").glob("run-*-*")
    said = ranks.said()
    assert said.count("warning: wandb") == 1
    assert "the server has not taken the last data in time (WANDB_FINISH_TIMEOUT gives it more seconds)" in said
    assert f"send it with: wandb sync {folder}\n" in said
    assert "Traceback" not in said
    assert len([*folder.glob("run-*.wandb")]) == 1
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 41)]
