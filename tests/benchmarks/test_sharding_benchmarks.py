"""What the benchmarks of sharding compare does the same work."""

import tarfile
from pathlib import Path

import pytest
import simplejpeg

from benchmarks import sharding, sharding_scale
from inpaint_dist.data.mask_sets import MaskSetConfig, make_masks


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def test_every_loop_that_is_timed_writes_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "SOURCES", {"500x375": (500, 375, 3), "256x256": (256, 256, 3)})
    works = sharding.work_on(tmp_path, "500x375", None)
    assert [name.split(" from")[0] for name in works] == [
        "make_shards", "OpenCV and TarWriter", "PIL and TarWriter", "PIL with draft and TarWriter",
    ]  # fmt: skip
    for work in works.values():
        work()
    written = [members(tmp_path / name) for name in ("ours 500x375.tar", "cv2.tar", "pil.tar")]
    assert sorted(written[0]) == sorted(
        f"{number}.{kind}" for number in range(3) for kind in ("jpg", "json", "mask.png")
    )
    for others in written[1:]:
        assert set(others) == set(written[0])
        for name in ("0.jpg", "1.jpg", "2.jpg"):
            photos = [simplejpeg.decode_jpeg(some[name], "RGB") for some in (written[0], others)]
            assert photos[0].shape == photos[1].shape == (256, 256, 3)
            assert abs(photos[0].astype(int) - photos[1]).mean() < 6  # PIL's filter is another
    copies = sharding.work_on(tmp_path, "256x256", None)
    for work in copies.values():
        work()
    assert members(tmp_path / "ours.tar") == members(tmp_path / "theirs.tar") == members(tmp_path / "ours 256x256.tar")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_the_scale_of_a_small_set_is_measured_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sharding_scale, "FOLDER", 20)
    photos = sharding_scale.link_photos(tmp_path / "photos", 50)
    assert len(list(photos.rglob("*.jpg"))) == 50
    make_masks(MaskSetConfig(out=tmp_path / "masks", count=5, size=32))
    planned = sharding_scale.plan_figures(photos, tmp_path / "masks", 50)
    assert 20 < planned["plan of 50 photos: peak MB of memory"] < 500
    packed = sharding_scale.packing_figures(photos, tmp_path / "masks", tmp_path / "out", 50)
    assert 20 < packed["packing 50 photos: peak MB of the parent"] < 500
    assert (tmp_path / "out/index.json").exists()
