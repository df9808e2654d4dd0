"""Draw a folder of precomputed masks: python tools/make_masks.py OUT --count 1000 --size 256 --family lama-train."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inpaint_dist import cli


def main(argv: Sequence[str]) -> None:
    from inpaint_dist.data.mask_sets import MaskSetConfig, make_masks

    about = "Draw precomputed masks (PNG, white = hole) and print the histogram of their hole ratios."
    config = cli.parse(MaskSetConfig, argv, prog="tools/make_masks.py", description=about, positional=("out",))
    print(*make_masks(config).lines(), sep="\n")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
