"""Pack photos and masks into shards: python tools/make_shards.py PHOTOS... --masks MASKS --out SHARDS --size 256."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inpaint_dist import cli


def main(argv: Sequence[str]) -> None:
    from inpaint_dist.data.sharding import ShardingConfig, make_shards

    about = "Pack photos and masks into shards (plain webdataset tars and an index)."
    config = cli.parse(ShardingConfig, argv, prog="tools/make_shards.py", description=about, positional=("photos",))
    print(*make_shards(config).lines(), sep="\n")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
