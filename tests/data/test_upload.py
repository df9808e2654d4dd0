"""make_shards --upload: shards are put on another machine one by one, each whole; a kill costs what was under way."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from inpaint_dist.data import upload as uploads
from inpaint_dist.data.remote import Patience, RemoteError
from inpaint_dist.data.sharding import ShardingReport, make_shards
from inpaint_dist.data.verification import verify
from inpaint_dist.errors import UsageError, UserError

KEPT = {"index.json", "rejected.jsonl", "uploaded-to.txt"}
SOON = Patience(tries=3, timeout=2.0, first_wait=0.001, longest_wait=0.001)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(photos_and_masks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine makes of them."""
    out = tmp_path_factory.mktemp("whole") / "out"
    make_shards(photos_and_masks.config(out))
    return content(out)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The URL of a folder in a store that keeps objects whole."""
    return f"memory://{tmp_path.name}/set"


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each name was put into a store."""
    counts, real = Counter[str](), MemoryFileSystem.put_file

    def counting(self: MemoryFileSystem, source: str, place: str, **more: object) -> None:
        counts[Path(place).name] += 1
        real(self, source, place, **more)

    monkeypatch.setattr(MemoryFileSystem, "put_file", counting)
    monkeypatch.setattr(uploads.Upload, "patience", SOON)
    return counts


def objects(store: str) -> dict[str, bytes]:
    system, folder = fsspec.core.url_to_fs(store)
    return {Path(name).name: system.cat_file(name) for name in system.find(folder)}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_uploaded_is_what_one_machine_makes(photos_and_masks, whole, tmp_path: Path, workers: int):
    there, url = tmp_path / "there", f"file://{tmp_path}/there"
    options = {"upload": url, "allow_remote": True, "workers": workers}
    report = make_shards(photos_and_masks.config(tmp_path / "out", **options))
    assert content(there) == whole
    assert verify(there) == []
    assert {*content(tmp_path / "out")} == KEPT
    assert any(f"train with --shards {url} --allow-remote" in note for note in report.notes)
    again = make_shards(photos_and_masks.config(tmp_path / "out", **options))
    assert any("there already: nothing was done" in note for note in again.notes)


def test_each_shard_is_one_put_and_the_index_the_last(photos_and_masks, whole, store, puts, tmp_path: Path):
    make_shards(photos_and_masks.config(tmp_path / "out", upload=store, allow_remote=True))
    assert objects(store) == whole
    assert puts == Counter(dict.fromkeys(whole, 1))
    assert [*puts][-1] == "index.json"


def test_a_killed_upload_goes_on_with_what_is_missing(
    photos_and_masks, whole, store, puts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, real = photos_and_masks.config(tmp_path / "out", upload=store, allow_remote=True), uploads.Upload.put

    class Killed(BaseException):
        pass

    def killed(self: uploads.Upload, path: Path) -> None:
        if path.name == "train-000004.tar":  # before it was put
            raise Killed
        real(self, path)
        if path.name == "train-000001.tar":  # after it was put, before it was removed here
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(uploads.Upload, "put", killed)
        for left in ("train-000001.tar", "train-000004.tar"):
            with pytest.raises(Killed):
                make_shards(config)
            assert [path.name for path in config.out.glob("*.tar")] == [left]
            assert not (config.out / "index.json").exists() and "index.json" not in objects(store)
    make_shards(config)
    assert objects(store) == whole
    assert puts == Counter(dict.fromkeys(whole, 1))
    assert {*content(tmp_path / "out")} == KEPT


def test_a_put_that_breaks_off_is_made_again_and_one_that_never_works_is_an_error(
    photos_and_masks, whole, store, puts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, real = photos_and_masks.config(tmp_path / "out", upload=store, allow_remote=True), MemoryFileSystem.put_file
    failures = {"train-000000.tar": ["cut"], "train-000002.tar": ["away", "away", "away"]}

    def failing(self: MemoryFileSystem, source: str, place: str, **more: object) -> None:
        real(self, source, place, **more)
        how = failures.get(Path(place).name) or [""]
        if (now := how.pop(0)) == "cut":
            self.pipe_file(place, self.cat_file(place)[:100])
        elif now == "away":
            self.rm_file(place)
            raise ConnectionError("the store is away")

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(
        RemoteError, match=r"memory://.*/set/train-000002.tar: the store is away \(3 tries\).* same command"
    ):
        make_shards(config)
    assert puts["train-000000.tar"] == 2 and {*objects(store)} == {"train-000000.tar", "train-000001.tar"}
    make_shards(config)
    assert objects(store) == whole
    assert puts["train-000001.tar"] == 1


HANGING = """
import sys, time
from pathlib import Path
from inpaint_dist import cli
from inpaint_dist.data import sharding_workers, upload
from inpaint_dist.data.sharding import ShardingConfig, make_shards

def hang(self, path):
    Path(sys.argv[1]).touch()
    time.sleep(1000)

upload.Upload.put = hang  # spawned workers run this file too
sharding_workers.GRACE = 1.0

def main(words):
    make_shards(cli.parse(ShardingConfig, words, prog="", description="", positional=("photos",)))
    return 0

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[2:]))
"""


def test_ctrl_c_ends_a_run_whose_uploads_hang(photos_and_masks, tmp_path: Path):
    (tmp_path / "hanging.py").write_text(HANGING)
    words = photos_and_masks.words(tmp_path / "out", "--upload", f"file://{tmp_path}/there", "--allow-remote")
    words[words.index("--workers") + 1] = "2"
    command = [sys.executable, str(tmp_path / "hanging.py"), str(tmp_path / "hangs"), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        try:
            while not (tmp_path / "hangs").exists():
                assert run.poll() is None
                time.sleep(0.05)
            os.killpg(run.pid, signal.SIGINT)
            said = run.communicate(timeout=30)[1]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 1
    assert "stopped; the same command goes on from the shards that are done" in said
    assert "Traceback" not in said


def test_parts_and_a_merge_upload_the_same(photos_and_masks, whole, store, puts, tmp_path: Path):
    options = {"upload": store, "allow_remote": True}
    for part in ("2/3", "1/3"):
        make_shards(photos_and_masks.config(tmp_path / "out", part=part, **options))
    with pytest.raises(UserError, match=r"--merge: 2 of 8 shards .* run --part 3/3 again"):
        make_shards(photos_and_masks.config(tmp_path / "out", merge=True, **options))
    make_shards(photos_and_masks.config(tmp_path / "out", part="3/3", **options))
    merged = make_shards(photos_and_masks.config(tmp_path / "out", merge=True, **options))
    assert isinstance(merged, ShardingReport) and merged.shards == 8
    assert objects(store) == whole
    assert puts == Counter(dict.fromkeys(whole, 1))


def test_what_is_lost_there_is_made_again(photos_and_masks, whole, store, puts, tmp_path: Path):
    config = photos_and_masks.config(tmp_path / "out", upload=store, allow_remote=True)
    make_shards(config)
    fsspec.filesystem("memory").rm_file(f"/{tmp_path.name}/set/train-000003.tar")
    make_shards(config)
    assert objects(store) == whole


def test_shards_of_others_are_not_written_over(photos_and_masks, store, puts, tmp_path: Path):
    make_shards(photos_and_masks.config(tmp_path / "first", upload=store, allow_remote=True))
    before = objects(store)
    with pytest.raises(UserError, match=r"--upload memory://.*/set holds shards that --out .*second knows nothing of"):
        make_shards(photos_and_masks.config(tmp_path / "second", upload=store, allow_remote=True, quality=90))
    make_shards(photos_and_masks.config(tmp_path / "local"))
    with pytest.raises(UserError, match=r"local holds shards, which --upload would make anew: copy them"):
        make_shards(photos_and_masks.config(tmp_path / "local", upload=f"{store}2", allow_remote=True))
    assert objects(store) == before and not objects(f"{store}2")


def test_an_out_folder_stands_for_one_place(photos_and_masks, store, puts, tmp_path: Path):
    """Another URL, or none, must not make anew what is there, nor write over what lies elsewhere."""
    there = {"upload": store, "allow_remote": True}
    make_shards(photos_and_masks.config(tmp_path / "second", **{**there, "upload": f"{store}2"}, quality=90))
    before = objects(f"{store}2")
    make_shards(photos_and_masks.config(tmp_path / "out", part="1/2", **there))
    for options in ({"part": "2/2"}, {"merge": True}, {}):
        with pytest.raises(UserError, match=rf"out: its shards were put into {store}; add --upload with that URL"):
            make_shards(photos_and_masks.config(tmp_path / "out", **options))
        with pytest.raises(UserError, match=rf"out stands for was put into {store}; name another --out"):
            make_shards(photos_and_masks.config(tmp_path / "out", **options, **{**there, "upload": f"{store}2"}))
    make_shards(photos_and_masks.config(tmp_path / "out", **there))
    with pytest.raises(UserError, match="its shards were put into"):
        make_shards(photos_and_masks.config(tmp_path / "out"))
    assert objects(f"{store}2") == before
    # What a local run has made stays, whole or not.
    make_shards(photos_and_masks.config(tmp_path / "local", part="1/2"))
    with pytest.raises(UserError, match="local holds shards, which --upload would make anew"):
        make_shards(photos_and_masks.config(tmp_path / "local", **{**there, "upload": f"{store}3"}))
    assert len([*(tmp_path / "local").glob("*.tar")]) == 4
    with pytest.raises(UsageError, match="--upload and --out: are one folder"):
        make_shards(photos_and_masks.config(tmp_path / "same", upload=f"file://{tmp_path}/same", allow_remote=True))


def test_no_index_says_that_shards_are_there_which_are_not(
    photos_and_masks, whole, store, puts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, real = photos_and_masks.config(tmp_path / "out", upload=store, allow_remote=True), uploads.Upload.put

    def losing(self: uploads.Upload, path: Path) -> None:
        real(self, path)
        if path.name == "val-000000.tar":
            fsspec.filesystem("memory").rm_file(f"/{tmp_path.name}/set/train-000003.tar")

    with monkeypatch.context() as patch:
        patch.setattr(uploads.Upload, "put", losing)
        with pytest.raises(UserError, match=r"1 of 8 shards are not there .*\(train-000003.tar\).* makes them again"):
            make_shards(config)
    assert not {"index.json", "rejected.jsonl"} & {*objects(store)}
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/set/train-000001.tar.0123456789ab.part", b"left by a kill")
    make_shards(config)
    assert objects(store) == whole
    assert {name for name, count in puts.items() if count > 1} == {"train-000003.tar"}


def test_the_index_is_removed_before_any_shard_is_made_anew(
    photos_and_masks, store, puts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, real = photos_and_masks.config(tmp_path / "out", upload=store, allow_remote=True), MemoryFileSystem.rm_file
    make_shards(config)
    memory, failures = fsspec.filesystem("memory"), [ConnectionError("the store is away")]
    memory.rm_file(f"/{tmp_path.name}/set/train-000003.tar")

    def failing(self: MemoryFileSystem, path: str) -> None:
        if failures:
            raise failures.pop()
        real(self, path)

    def watching(self: uploads.Upload, path: Path) -> None:
        raise KeyError(f"index there: {'index.json' in objects(store)}")

    monkeypatch.setattr(MemoryFileSystem, "rm_file", failing)
    monkeypatch.setattr(uploads.Upload, "put", watching)
    with pytest.raises(KeyError, match="index there: False"):
        make_shards(config)
    assert failures == []


@pytest.mark.parametrize(
    ("upload", "allowed", "said"),
    [
        (
            "s3://me:secret@bucket/set?token=secret",
            False,
            r"--upload s3://\*\*\*@bucket/set\?\*\*\*: add --allow-remote",
        ),
        ("there/set", True, "--upload: give a URL, as s3://BUCKET/mine"),
        ("https://me:secret@host/set", True, r"--upload https://\*\*\*@host/set: web servers take no files"),
        ("memory://host/set?token=secret", True, r"--upload memory://host/set\?\*\*\*: a folder's URL has no \?"),
        (" s3://me:secret@bucket/set", True, "--upload: give a URL"),
        ("nowhere://host/set", True, r"nowhere://host/set: .*[Pp]rotocol"),
    ],
)
def test_places_that_cannot_be_meant_are_refused(
    photos_and_masks, tmp_path: Path, upload: str, allowed: bool, said: str
):
    with pytest.raises((UsageError, UserError), match=said) as refused:
        make_shards(photos_and_masks.config(tmp_path / "out", upload=upload, allow_remote=allowed))
    assert "secret" not in str(refused.value)
