"""Real ranks without their seconds of start: a process that has imported the training forks them on request.

It reads a line of JSON a request and answers with one: {"flags", "world", "port", "out", "code"} → the ranks' numbers.
`code` is run in each rank before it trains. A rank writes into OUT/rank-N.txt, and its exit code into OUT/rank-N.code.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401 - what a run imports on its way, seconds of it
import torch._dynamo  # noqa: F401
import torchmetrics.functional.image  # noqa: F401

from inpaint_dist import cli, train
from inpaint_dist.host import signal_at_parents_end
from inpaint_dist.stopping import listening


def rank(number: int, asked: dict) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(asked["world"])}
    os.environ |= {"LOCAL_WORLD_SIZE": str(asked["world"]), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(asked["port"]), **asked["environment"]}
    if asked["world"] > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    file = os.open(Path(asked["out"]) / f"rank-{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 70
    try:
        with listening():
            exec(asked["code"], {})
            code = cli.run(train.main, asked["flags"])
            sys.stdout.flush()
            os._exit(code)
    except BaseException:  # noqa: BLE001 - a fork never returns into the nursery
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait_for(process: int, path: Path) -> None:
    status = os.waitpid(process, 0)[1]
    part = path.with_suffix(".part")
    part.write_text(str(os.waitstatus_to_exitcode(status)))
    part.rename(path)


def main() -> None:
    signal_at_parents_end(9)
    for line in sys.stdin:
        asked = json.loads(line)
        processes = []
        for number in range(asked["world"]):
            process = os.fork()
            if process == 0:
                rank(number, asked)
            processes.append(process)
        for number, process in enumerate(processes):
            path = Path(asked["out"]) / f"rank-{number}.code"
            threading.Thread(target=wait_for, args=(process, path), daemon=True).start()
        sys.stdout.write(f"{json.dumps(processes)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
