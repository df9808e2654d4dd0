"""Draw what shards hold: python tools/show_shards.py SHARDS --out sheet.png."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inpaint_dist import cli


def main(argv: Sequence[str]) -> None:
    from inpaint_dist.data.contact_sheet import SheetConfig, show_shards

    about = "Draw photo | mask | masked of some samples, and the hole ratios of train and val."
    config = cli.parse(SheetConfig, argv, prog="tools/show_shards.py", description=about, positional=("shards",))
    print(*show_shards(config), sep="\n")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
