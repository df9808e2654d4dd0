"""What make_shards takes for sets of many photos: memory and time of the plan, and memory while it packs.

python -m benchmarks.sharding_scale [--photos 1000000] [--packed 4000 40000]

The photos are hard links of one small JPEG in folders of 5,000, so that a million of them take no room.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.report import write_report
from inpaint_dist import cli
from inpaint_dist.data.mask_sets import MaskSetConfig, make_masks

SIZE = 32
FOLDER = 5000
WORKERS = 2
PLAN = """
import sys, time
from pathlib import Path
from benchmarks.sharding_scale import peak_megabytes
from inpaint_dist.data.sharding import ShardingConfig
from inpaint_dist.data.sharding_plan import make_plan
start, before = time.process_time(), peak_megabytes("self")
plan = make_plan(ShardingConfig(photos=(sys.argv[1],), masks=(sys.argv[2],), out=Path("never")))
assert len(plan.train) + len(plan.val) == int(sys.argv[3])
print(before, peak_megabytes("self"), time.process_time() - start)
"""


@dataclass(frozen=True, kw_only=True)
class ScaleBenchmark:
    """Measure make_shards on many photos."""

    photos: int = 1_000_000
    """Photos to plan for."""
    packed: tuple[int, ...] = (4_000, 40_000)
    """Photos to pack, in sets of their own."""


def main(argv: list[str]) -> None:
    config = cli.parse(ScaleBenchmark, argv, prog="python -m benchmarks.sharding_scale", description=__doc__ or "")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_masks(MaskSetConfig(out=root / "masks", count=1000, size=SIZE))
        many = link_photos(root / "many", config.photos)
        figures |= plan_figures(many, root / "masks", config.photos)
        for count in config.packed:
            photos = link_photos(root / f"photos {count}", count)
            figures |= packing_figures(photos, root / "masks", root / f"out {count}", count)
    for name, value in figures.items():
        print(f"  {name:<60}{value:>9,.1f}")
    write_report("sharding_scale", figures, photos="hard links of one JPEG", size=SIZE, workers=WORKERS)


def link_photos(folder: Path, count: int) -> Path:
    """A folder of that many photos."""
    y, x = np.mgrid[0 : 2 * SIZE, 0 : 2 * SIZE].astype(np.uint8)
    data = simplejpeg.encode_jpeg(np.dstack([x, y, x]).copy(), quality=90)
    for number in range(count):
        below = folder / f"{number // FOLDER:05d}"
        photo = below / f"{number:09d}_photo.jpg"
        if number % FOLDER:
            os.link(below / f"{number - number % FOLDER:09d}_photo.jpg", photo)
        else:
            below.mkdir(parents=True)
            photo.write_bytes(data)
    return folder


def plan_figures(photos: Path, masks: Path, count: int) -> dict[str, float]:
    """Memory and CPU time of the plan, in a process of its own."""
    start = time.monotonic()
    words = [sys.executable, "-c", PLAN, str(photos), str(masks), str(count)]
    before, peak, seconds = map(float, subprocess.run(words, capture_output=True, check=True).stdout.split())
    return {
        f"plan of {count} photos: peak MB of memory": round(peak, 1),
        "of which MB before it starts": round(before, 1),
        f"plan of {count} photos: CPU-seconds": round(seconds, 1),
        f"plan of {count} photos: seconds": round(time.monotonic() - start, 1),
    }


def packing_figures(photos: Path, masks: Path, out: Path, count: int) -> dict[str, float]:
    """The largest memory of the parent and of its workers while they pack."""
    words = ["tools/make_shards.py", str(photos), "--masks", str(masks), "--out", str(out), "--size", str(SIZE)]
    process = subprocess.Popen([sys.executable, *words, "--workers", str(WORKERS)], stdout=subprocess.DEVNULL)
    parent = worker = 0.0
    while process.poll() is None:
        parent = max(parent, peak_megabytes(process.pid))
        worker = max([worker, *map(peak_megabytes, children(process.pid))])
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"make_shards ended with {process.returncode}")
    return {
        f"packing {count} photos: peak MB of the parent": round(parent, 1),
        f"packing {count} photos: peak MB of a worker": round(worker, 1),
    }


def children(pid: int) -> list[int]:
    """Its child processes."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def peak_megabytes(pid: int | str) -> float:
    """The most memory that a process has held so far; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


if __name__ == "__main__":
    main(sys.argv[1:])
