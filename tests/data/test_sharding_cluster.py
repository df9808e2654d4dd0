"""--executor dask: the same plan on the processes of a cluster, whatever becomes of them."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_dist.data.sharding import ShardingConfig, make_shards
from inpaint_dist.data.verification import verify
from inpaint_dist.errors import UserError

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed (the extra `cluster`)")

pytestmark = pytest.mark.filterwarnings("default")  # what dask and its processes warn of is not ours to mend


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator["distributed.LocalCluster"]:
    """A scheduler, and two workers that are processes of their own."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options, local_directory=str(tmp_path / "dask"), silence_logs=50) as started:
        yield started


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_cluster_makes_the_bytes_of_one_machine(photos_and_masks, cluster, tmp_path: Path):
    make_shards(photos_and_masks.config(tmp_path / "whole"))
    config = photos_and_masks.config(tmp_path / "out", executor="dask", scheduler=cluster.scheduler_address)
    report = make_shards(config)
    assert (report.train + report.val, report.shards, report.rejected) == (20, 8, 1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_cluster_uploads_the_bytes_of_one_machine(photos_and_masks, cluster, tmp_path: Path):
    make_shards(photos_and_masks.config(tmp_path / "whole"))
    options = {"executor": "dask", "scheduler": cluster.scheduler_address, "allow_remote": True}
    make_shards(photos_and_masks.config(tmp_path / "out", upload=f"file://{tmp_path}/there", **options))
    assert content(tmp_path / "there") == content(tmp_path / "whole")
    assert not [*(tmp_path / "out").glob("*.tar")]


def test_a_worker_that_is_killed_in_the_middle_loses_nothing(photos_and_masks, cluster, tmp_path: Path):
    config = many(photos_and_masks, tmp_path, tmp_path / "out", executor="dask", scheduler=cluster.scheduler_address)
    finished: dict[str, int] = {}

    def kill_one() -> None:
        state = config.out / ".unfinished"
        while len(names := [path.name.removesuffix(".json") for path in state.glob("*.tar.json")]) < 3:
            time.sleep(0.002)
        finished.update({name: (config.out / name).stat().st_ino for name in names})
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    report = make_shards(config)
    killer.join(timeout=1)
    assert 3 <= len(finished) < report.shards == 12
    assert report.train == 120
    assert {name: (config.out / name).stat().st_ino for name in finished} == finished  # none of them was made again
    make_shards(many(photos_and_masks, tmp_path, tmp_path / "whole", workers=2))
    assert content(config.out) == content(tmp_path / "whole")
    assert verify(config.out) == []


def many(photos_and_masks, folder: Path, out: Path, **options) -> ShardingConfig:
    """Twelve shards of ten photos that take a while."""
    if not (folder / "photos").exists():
        (folder / "photos").mkdir()
        photo = np.random.RandomState(3).randint(0, 255, (75, 100, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / "photo.jpg"), cv2.resize(photo, (1600, 1200)))
        for number in range(120):
            (folder / f"photos/{number:03d}.jpg").hardlink_to(folder / "photo.jpg")
    masks, photos = (str(photos_and_masks.masks),), (str(folder / "photos"),)
    options = {"size": 64, "samples_per_shard": 10, "val_fraction": 0.0, **options}
    return ShardingConfig(photos=photos, masks=masks, out=out, **options)


def test_a_scheduler_that_is_not_there_or_has_no_worker_is_an_error(
    photos_and_masks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inpaint_dist.data.sharding_cluster._PATIENCE", "1s")
    nobody = photos_and_masks.config(tmp_path / "out", executor="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(UserError, match=r"--scheduler tcp://127.0.0.1:9: no scheduler answers there"):
        make_shards(nobody)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as empty:
        alone = photos_and_masks.config(tmp_path / "out", executor="dask", scheduler=empty.scheduler_address)
        with pytest.raises(UserError, match=r"has no workers; start some with `dask worker tcp://"):
            make_shards(alone)


def test_without_dask_the_error_names_the_extra(photos_and_masks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with warnings.catch_warnings(), pytest.raises(UserError, match=r"pip install 'inpaint-dist\[cluster\]'"):
        make_shards(photos_and_masks.config(tmp_path / "out", executor="dask", scheduler="tcp://x:1"))
