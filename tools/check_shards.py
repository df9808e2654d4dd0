"""Read shards back against their index and checksums: python tools/check_shards.py SHARDS [--fast]."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inpaint_dist import cli


def main(argv: Sequence[str]) -> int:
    from inpaint_dist.data.verification import CheckConfig, check_shards

    about = "Read every sample back against index and checksums; exit 1 if anything is wrong."
    config = cli.parse(CheckConfig, argv, prog="tools/check_shards.py", description=about, positional=("shards",))
    report = check_shards(config)
    print(*report.lines(), sep="\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
