"""Write a page about shards: python tools/report_shards.py SHARDS --out report.html."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inpaint_dist import cli


def main(argv: Sequence[str]) -> None:
    from inpaint_dist.data.shard_page import ReportConfig, report_shards

    about = "Write one HTML file about shards: counts, holes, photos, copies, what was left out, what looks wrong."
    config = cli.parse(ReportConfig, argv, prog="tools/report_shards.py", description=about, positional=("shards",))
    print(*report_shards(config), sep="\n")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
