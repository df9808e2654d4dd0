"""Photos per CPU-second into shards of 256: make_shards against the usual loops over webdataset's TarWriter.

python -m benchmarks.sharding [--photos DIR]

All read a JPEG and a mask, bring the photo's short side to 256, crop, encode at quality 95 and write photo, mask and
json to a tar: by PIL, by PIL with its draft mode, and by OpenCV in the steps of img2dataset's resizer. The photos have
about 500x375 and 1600x1200 pixels: those of DIR scaled to these sizes, or noise whose power falls as a photo's does.
Photos of 256x256 are copied; there the tar alone is timed too, from members in memory. Two processes are timed on
2,000 photos with their start.
"""

import io
import json
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps
from webdataset.writer import TarWriter

from benchmarks.report import interleaved, write_report
from inpaint_dist import cli
from inpaint_dist.data.masks import draw_mask, mask_rng
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.packed_masks import encode_mask
from inpaint_dist.data.photo_sources import Source, find_photos, key_of
from inpaint_dist.data.photos import Pixels, decode_photo
from inpaint_dist.data.samples import Item, SampleMaker, SampleSettings
from inpaint_dist.data.shard_writer import ShardWriter
from inpaint_dist.data.sharding import ShardingConfig, make_shards
from inpaint_dist.data.sharding_workers import Job, make_shard

SIZE = 256
QUALITY = 95
ROUNDS = 7
SOURCES = {"500x375": (500, 375, 80), "1600x1200": (1600, 1200, 24), "256x256": (256, 256, 80)}  # width, height, photos
SETTINGS = SampleSettings(
    size=SIZE,
    fit="crop",
    quality=QUALITY,
    keep_metadata=False,
    masks_per_photo=1,
    invert_masks=False,
    allow_large_holes=False,
)


@dataclass(frozen=True, kw_only=True)
class ShardingBenchmark:
    """Time the making of shards."""

    photos: str | None = None
    """Folder of photos to scale to the sources' sizes; none: noise."""


def main(argv: list[str]) -> None:
    config = cli.parse(ShardingBenchmark, argv, prog="python -m benchmarks.sharding", description=__doc__ or "")
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = {}
        for name in SOURCES:
            work |= work_on(Path(folder), name, config.photos)
        seconds = interleaved(ROUNDS, work)
        figures = {name: round(SOURCES[name.split()[-1]][2] / spent, 1) for name, spent in seconds.items()}
        figures |= processes(Path(folder))
    print("photos per CPU-second")
    for name, rate in figures.items():
        print(f"  {name:<44}{rate:>9,.0f}")
    write_report(
        "sharding",
        figures,
        unit="photos per CPU-second",
        photos="noise of a photo's spectrum" if config.photos is None else "photos, scaled",
        photos_a_round={name: count for name, (_, _, count) in SOURCES.items()},
        jpeg_quality_of_sources=90,
        rounds=ROUNDS,
        threads=1,
    )


def work_on(folder: Path, name: str, photos: str | None) -> dict[str, Callable[[], object]]:
    """What is timed: each writes one shard of the sources of one size."""
    width, height, count = SOURCES[name]
    items = [
        Item(key_of(path.name), _source(path), None) for path in _photos(folder / name, photos, width, height, count)
    ]
    masks = [_source(path) for path in _masks(folder / f"masks {name}")]

    def ours() -> None:
        with closing(SampleMaker(SETTINGS, masks)) as maker:
            make_shard(Job(folder / f"ours {name}.tar", items), maker, lambda: None)

    works: dict[str, Callable[[], object]] = {f"make_shards from {name}": ours}
    if name == f"{SIZE}x{SIZE}":
        members = _members(items, masks)
        works[f"the tar alone by ShardWriter, of {name}"] = lambda: _tar_by_ours(folder / "ours.tar", members)
        works[f"the tar alone by TarWriter, of {name}"] = lambda: _tar_by_theirs(folder / "theirs.tar", members)
    else:
        works[f"OpenCV and TarWriter from {name}"] = lambda: _with_cv2(folder / "cv2.tar", items, masks)
        works[f"PIL and TarWriter from {name}"] = lambda: _with_pil(folder / "pil.tar", items, masks, draft=False)
        works[f"PIL with draft and TarWriter from {name}"] = lambda: _with_pil(
            folder / "pil.tar", items, masks, draft=True
        )
    return works


def _with_pil(path: Path, items: list[Item], masks: list[Source], *, draft: bool) -> None:
    with TarWriter(str(path)) as writer:
        for number, item in enumerate(items):
            data = Path(item.source.file).read_bytes()
            photo = Image.open(io.BytesIO(data))
            width, height = photo.size
            if draft:
                photo.draft("RGB", (2 * SIZE, 2 * SIZE))
            photo = ImageOps.exif_transpose(photo).convert("RGB")
            jpeg, png = io.BytesIO(), io.BytesIO()
            _square(photo, Image.Resampling.LANCZOS).save(jpeg, "JPEG", quality=QUALITY)
            mask = Image.open(masks[number % len(masks)].file).convert("L")
            _square(mask, Image.Resampling.NEAREST).convert("1").save(png, "PNG")
            facts = {"source": item.source.name, "width": width, "height": height, "sha256": sha256(data).hexdigest()}
            sample = {"jpg": jpeg.getvalue(), "mask.png": png.getvalue(), "json": json.dumps(facts).encode()}
            writer.write({"__key__": item.key, **sample})


def _with_cv2(path: Path, items: list[Item], masks: list[Source]) -> None:
    with TarWriter(str(path)) as writer:
        for number, item in enumerate(items):
            data = Path(item.source.file).read_bytes()
            photo = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert photo is not None
            height, width = photo.shape[:2]
            scale = SIZE / min(height, width)
            to = round(width * scale), round(height * scale)
            jpeg = cv2.imencode(
                ".jpg",
                _centre(cv2.resize(photo, to, interpolation=cv2.INTER_AREA)),
                [cv2.IMWRITE_JPEG_QUALITY, QUALITY],
            )
            mask = cv2.imread(masks[number % len(masks)].file, cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            to = (SIZE, SIZE)  # the masks are square
            png = cv2.imencode(
                ".png", cv2.resize(mask, to, interpolation=cv2.INTER_NEAREST), [cv2.IMWRITE_PNG_BILEVEL, 1]
            )
            facts = {"source": item.source.name, "width": width, "height": height, "sha256": sha256(data).hexdigest()}
            sample = {"jpg": jpeg[1].tobytes(), "mask.png": png[1].tobytes(), "json": json.dumps(facts).encode()}
            writer.write({"__key__": item.key, **sample})


def _centre(image: "cv2.typing.MatLike") -> "cv2.typing.MatLike":
    top, left = (image.shape[0] - SIZE) // 2, (image.shape[1] - SIZE) // 2
    return np.ascontiguousarray(image[top : top + SIZE, left : left + SIZE])


def _members(items: list[Item], masks: list[Source]) -> list[tuple[str, dict[str, bytes]]]:
    """What the samples of a shard are made of, in memory."""
    with closing(SampleMaker(SETTINGS, masks)) as maker:
        return [(item.key, maker.make(item).members) for item in items]


def _tar_by_ours(path: Path, members: list[tuple[str, dict[str, bytes]]]) -> None:
    with ShardWriter(path) as writer:
        for key, files in members:
            writer.add(key, files)


def _tar_by_theirs(path: Path, members: list[tuple[str, dict[str, bytes]]]) -> None:
    with TarWriter(str(path)) as writer:
        for key, files in members:
            writer.write({"__key__": key, **files})


def processes(folder: Path) -> dict[str, float]:
    """make_shards as it is called, on 2,000 photos: one process against two, their start included."""
    width, height, _ = SOURCES["500x375"]
    photos = folder / "many"
    photos.mkdir()
    for number in range(2000):
        (photos / f"{number:04d}.jpg").hardlink_to(folder / "500x375" / f"{number % 80}.jpg")
    outs = (folder / f"out {number}" for number in count())

    def make(workers: int) -> None:
        make_shards(
            ShardingConfig(
                photos=(str(photos),),
                masks=(str(folder / "masks 500x375"),),
                out=next(outs),
                samples_per_shard=100,
                workers=workers,
            )
        )

    seconds = interleaved(3, {f"{workers} processes": partial(make, workers) for workers in (1, 2)})
    return {
        f"make_shards as called, {name}, from {width}x{height}": round(2000 / spent, 1)
        for name, spent in seconds.items()
    }


def _square(image: Image.Image, method: Image.Resampling) -> Image.Image:
    scale = SIZE / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), method)
    left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
    return resized.crop((left, top, left + SIZE, top + SIZE))


def _source(path: Path) -> Source:
    return Source(path.name, path.name, str(path), "", path.stat().st_size)


def _photos(folder: Path, given: str | None, width: int, height: int, count: int) -> list[Path]:
    folder.mkdir()
    found = find_photos([given], "--photos").sources[:count] if given else []
    for number in range(count):
        if found:
            source = found[number % len(found)]
            photo = decode_photo(Path(source.file).read_bytes(), source.name)
            photo = np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
        else:
            photo = _noise(width, height, number)
        data = simplejpeg.encode_jpeg(photo, quality=90, colorsubsampling="420")
        (folder / f"{number}.jpg").write_bytes(data)
    return sorted(folder.iterdir())


def _noise(width: int, height: int, seed: int) -> Pixels:
    """Octaves of noise, each twice as coarse and twice as strong: the spectrum that photos have on average."""
    rng = random.Random(seed)
    photo = np.full((height, width, 3), 128, np.float32)
    octave = 0
    while min(width, height) >> octave >= 2:
        columns, rows = max(width >> octave, 2), max(height >> octave, 2)
        noise = np.frombuffer(rng.randbytes(columns * rows * 3), np.uint8).reshape(rows, columns, 3).astype(np.float32)
        photo += (cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) - 128) * 0.05 * 2 ** (octave * 0.5)
        octave += 1
    return np.clip(photo, 0, 255).astype(np.uint8)


def _masks(folder: Path) -> list[Path]:
    folder.mkdir()
    for number in range(64):
        (folder / f"{number}.png").write_bytes(encode_mask(draw_mask("lama-train", SIZE, SIZE, mask_rng(number))))
    return sorted(folder.iterdir())


if __name__ == "__main__":
    main(sys.argv[1:])
