"""A launcher of few words: WORLD OUT FLAGS… It imports the training once and forks its ranks.

It passes SIGTERM and SIGINT on, and ends the other ranks when one has failed, as torchrun does.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import nursery  # beside this file

from inpaint_dist.host import signal_at_parents_end


def main(world: int, out: Path, flags: list[str]) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    asked = {"world": world, "port": port, "out": str(out), "code": "", "flags": flags, "environment": {}}
    ranks: dict[int, int] = {}
    for number in range(world):
        process = os.fork()
        if process == 0:
            signal_at_parents_end(signal.SIGKILL)
            nursery.rank(number, asked)
        ranks[process] = number

    def end(number: int, _: object) -> None:
        for process in ranks:
            os.kill(process, number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    part = out / "ranks.part"
    part.write_text(" ".join(map(str, ranks)))
    part.rename(out / "ranks")
    codes: list[int] = []
    while ranks:
        process, status = os.wait()
        codes.append(os.waitstatus_to_exitcode(status))
        del ranks[process]
        if codes[-1] and ranks:
            time.sleep(0.1)
            end(signal.SIGTERM, None)
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
