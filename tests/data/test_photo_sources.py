"""Finding photos wherever they lie, and what they are called."""

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from inpaint_dist.data.name_pairing import pair_by_name
from inpaint_dist.data.photo_sources import PhotoReader, find_photos, key_of
from inpaint_dist.data.photos import PhotoError
from inpaint_dist.data.source_table import Source, Sources
from inpaint_dist.data.tar import MAX_NAME
from inpaint_dist.errors import UserError


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 99, 199)).save(buffer, kind)
    return buffer.getvalue()


def put(folder: Path, *names: str, data: bytes | None = None) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture() if data is None else data)


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, picture())
    return path


def paths(*places: object) -> list[str]:
    return [source.path for source in find_photos([str(place) for place in places], "PHOTOS").sources]


def source(path: str) -> Source:
    return Source(path, path, f"/nowhere/{path}", "", 1)


def test_nested_folders_any_extension_and_any_case(tmp_path: Path):
    put(
        tmp_path, "b.JPG", "a/deep/er/x.TiFf", "a/y.webp", "z.jpeg", "notes.txt", ".hidden/x.png", "._z.jpeg", data=b"?"
    )
    put(tmp_path, "no_extension", "strange.img")
    found = find_photos([str(tmp_path)], "PHOTOS")
    assert sorted(s.path for s in found.sources) == [
        "a/deep/er/x.TiFf", "a/y.webp", "b.JPG", "no_extension", "strange.img", "z.jpeg",
    ]  # fmt: skip
    assert found.ignored == {"*.txt": 1}


def test_links_are_followed_without_loops_and_broken_ones_named(tmp_path: Path):
    put(tmp_path, "elsewhere/one.png", "photos/two.png")
    photos = tmp_path / "photos"
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "up").symlink_to(photos)
    (photos / "file.png").symlink_to(tmp_path / "elsewhere/one.png")
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = find_photos([str(photos)], "PHOTOS")
    assert sorted(s.path for s in found.sources) == ["file.png", "linked/one.png", "two.png"]
    assert found.refused == [("gone.jpg", "cannot be read (No such file or directory)")]


def test_globs_and_single_files(tmp_path: Path):
    put(tmp_path, "p/a/1.png", "p/b/1.png", "p/b/2.jpg", "p/c.png")
    assert paths(f"{tmp_path}/p/*/1.png") == ["a/1.png", "b/1.png"]
    assert paths(f"{tmp_path}/p/**/*.png") == ["a/1.png", "b/1.png", "c.png"]
    assert sorted(paths(f"{tmp_path}/p/[ab]")) == ["a/1.png", "b/1.png", "b/2.jpg"]
    assert paths(tmp_path / "p/b/2.jpg", tmp_path / "p/c.png") == ["2.jpg", "c.png"]


def test_a_photo_at_two_places_is_found_once(tmp_path: Path):
    put(tmp_path, "p/a/1.png", "p/2.png")
    assert paths(tmp_path / "p", tmp_path / "p/a") == ["2.png", "a/1.png"]


def test_a_zip_is_read_where_it_lies(tmp_path: Path):
    archive = zipped(
        tmp_path / "Kaggle.ZIP", "train/images/1.PNG", "train/images/sub/2.png", "train/masks/1.png", "readme.md",
        "__MACOSX/train/images/._1.PNG",
    )  # fmt: skip
    assert paths(archive) == ["train/images/1.PNG", "train/images/sub/2.png", "train/masks/1.png"]
    found = find_photos([f"{archive}:train/images"], "PHOTOS").sources
    assert [s.path for s in found] == ["1.PNG", "sub/2.png"]
    assert found[0].name == "Kaggle.ZIP:train/images/1.PNG"
    assert paths(f"{archive}:train/images/") == paths(f"{archive}:train/images")
    with PhotoReader() as reader:
        assert reader.read(found[1]) == picture()
    assert [path.name for path in tmp_path.iterdir()] == ["Kaggle.ZIP"]


def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path):
    archive = zipped(tmp_path / "evil.zip", "../../etc/x.png", "/abs.png", "a/../../b.png", "good.png")
    found = find_photos([str(archive)], "PHOTOS")
    assert [s.path for s in found.sources] == ["good.png"]
    assert {name for name, _ in found.refused} == {
        "evil.zip:../../etc/x.png", "evil.zip:/abs.png", "evil.zip:a/../../b.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "--masks .*nowhere: no such file or folder"),
        ("empty", r"--masks .*empty: no picture there \(other files: 2 \*.txt, 1 \*.zip; name a .zip itself"),
        ("*.nothing", r"no picture there"),
        ("broken.zip", "broken.zip: not a .zip that can be read"),
        ("good.zip:elsewhere", "elsewhere: no picture there"),
    ],
)
def test_a_place_without_pictures_is_an_error_that_says_what_is_there(tmp_path: Path, place: str, message: str):
    put(tmp_path, "empty/a.txt", "empty/b.txt", "empty/c.zip", "broken.zip", data=b"?")
    zipped(tmp_path / "good.zip", "a.png")
    with pytest.raises(UserError, match=message):
        find_photos([f"{tmp_path}/{place}"], "--masks")


def test_a_damaged_member_is_the_photos_error_not_the_runs(tmp_path: Path):
    archive = zipped(tmp_path / "a.zip", "1.png", "2.png")
    data = bytearray(archive.read_bytes())
    data[data.index(picture()[:8]) if picture()[:8] in data else 60] ^= 0xFF
    archive.write_bytes(data)
    found = find_photos([str(archive)], "PHOTOS").sources
    with PhotoReader() as reader:
        with pytest.raises(PhotoError, match=r"a.zip:1.png: cannot be read"):
            reader.read(found[0])
        assert reader.read(found[1]) == picture()


def test_a_file_that_vanished_is_an_error_with_its_relative_name(tmp_path: Path):
    put(tmp_path, "a/1.png")
    found = find_photos([str(tmp_path)], "PHOTOS").sources[0]
    Path(found.file).unlink()
    with PhotoReader() as reader, pytest.raises(PhotoError, match=r"^a/1.png: cannot be read \(No such file"):
        reader.read(found)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a.jpg", "a"),
        ("dir/sub/a.JPG", "dir__sub__a"),
        ("my photo.v2.final.png", "my_photo_v2_final"),
        ("café.jpg", "cafu00e9"),
        ("cafe\u0301.jpg", "cafu00e9"),  # the same name as a Mac writes it
        ("写真.png", "u5199u771f"),
        ("2020.12.31", "2020_12_31"),
        ("a'b\"c\\d.gif", "a_b_c_d"),
    ],
)
def test_keys_hold_letters_digits_and_dashes_alone(path: str, key: str):
    assert key_of(path) == key


def test_long_keys_fit_a_tar_and_stay_apart():
    keys = {key_of(f"{'k' * 300}{number}.jpg") for number in range(100)}
    assert len(keys) == 100
    assert max(map(len, keys)) + len(".mask-99.png") <= MAX_NAME


def test_a_name_that_is_no_text_still_gets_a_key(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        put(tmp_path, name)
    except OSError:
        pytest.skip("this file system refuses names that are no UTF-8")
    assert [key_of(s.path) for s in find_photos([str(tmp_path)], "PHOTOS").sources] == ["cafudce9"]


def test_masks_are_paired_by_name():
    photos = [source(name) for name in ("a/1.jpg", "b/1.jpg", "c/2.jpg", "face_mask.jpg", "alone.jpg")]
    masks = [
        source(name)
        for name in ("a/1.png", "b/1_mask001.png", "b/1_mask000.png", "2-mask.png", "face_mask.png", "other.png")
    ]
    names = [[masks[number].path for number in pair] for pair in pair_by_name(photos, masks)]
    assert names == [["a/1.png"], ["b/1_mask000.png", "b/1_mask001.png"], ["2-mask.png"], ["face_mask.png"], []]


def test_a_file_name_that_two_photos_share_pairs_nothing_by_itself():
    photos, masks = [source("a/1.jpg"), source("b/1.jpg")], [source("1.png")]
    assert pair_by_name(photos, masks) == [(), ()]


def test_a_table_of_sources_gives_back_what_was_put_in(tmp_path: Path):
    archive = str(tmp_path / "a.zip")
    sources = [
        Source("deep/é.jpg", "deep/é.jpg", str(tmp_path / "deep/é.jpg"), "", 3),
        Source("x.png", "a.zip:train/x.png", archive, "train/x.png", 1 << 40),
        Source("x.png", "a.zip:x.png", archive, "x.png", 0),
        Source("caf\udce9.jpg", "caf\udce9.jpg", f"{tmp_path}/caf\udce9.jpg", "", 9),
    ]
    table = pickle.loads(pickle.dumps(Sources(sources)))
    assert list(table) == sources
    assert table[1:3] == sources[1:3] and table[-1] == sources[-1]
    assert [(table.path(i), table.size(i)) for i in range(4)] == [(s.path, s.size) for s in sources]
    with pytest.raises(IndexError):
        table[4]


def test_a_million_photos_would_take_a_tenth_of_a_gigabyte(tmp_path: Path):
    """What is held grows by the path and some 20 bytes a photo, not by objects."""
    held: list[int] = []
    for count in (100, 2100):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:08d}_photo.jpg").touch()
        tracemalloc.start()
        found = find_photos([str(folder)], "PHOTOS")
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(found.sources) == count
    assert (held[1] - held[0]) / 2000 < 60
