"""A wandb server that takes a connection and never answers costs seconds once, and no step; see tests/tracking too."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
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


def test_a_server_that_hangs_costs_two_ranks_seconds_once_and_no_step(
    silent_server: tuple[str, list[socket.socket]],
    nursery: Any,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
):
    address, held = silent_server
    assert tracker.INIT_TIMEOUT <= 9
    (tmp_path / "home").mkdir()
    run = tmp_path / "run"
    quiet = ("--checkpoint-every", "1000", "--eval-every", "1000", "--sample-every", "1000")
    started = time.monotonic()
    ranks = nursery.start(
        run,
        *("--report-to", "wandb", "--max-steps", "40"),
        *quiet,
        world=2,
        HOME=str(tmp_path / "home"),
        WANDB_BASE_URL=address,
        WANDB_API_KEY="a" * 40,
        WANDB_ERROR_REPORTING="false",
    )
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
