"""Shards on another machine read as those of this one: the same batches, one download, whatever the server does."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inpaint_dist import train
from inpaint_dist.data import shard_cache, tar_streams, verification
from inpaint_dist.data.loader import DataConfig
from inpaint_dist.data.remote import Patience, RemoteError, redacted
from inpaint_dist.data.shard_cache import RemoteShards
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.data.sources import Place, Sources, open_sources
from inpaint_dist.data.verification import CheckConfig, check_shards
from inpaint_dist.errors import UsageError, UserError

HASTY = Patience(tries=3, timeout=0.5, first_wait=0.01)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a server in these tests."""
    monkeypatch.setattr(shard_cache, "PATIENCE", HASTY)
    monkeypatch.setattr(tar_streams, "PATIENCE", HASTY)
    monkeypatch.setattr(verification, "PATIENCE", Patience(tries=2, timeout=0.5, first_wait=0.01))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)


def a_remote(url: str, cache: Path, limit: int = 10**9) -> RemoteShards:
    return RemoteShards(url=url, cache=cache, limit=limit, patience=HASTY)


def an_index(remote: RemoteShards) -> ShardIndex:
    remote.refresh_index()
    return ShardIndex.load(remote.folder, "train")


def open_them(shards: str, cache: Path, *, rank: int = 0, world: int = 1, **options: object) -> Sources:
    options = {"batch_size": 4, "workers": 2, "allow_remote": True, "shard_cache": cache, **options}
    config = DataConfig(shards=shards, **options)  # type: ignore[arg-type]
    return open_sources(config, Place(rank, world, CPU), seed=3, epochs=4, max_steps=None, parts=1)


def digest(sources: Sources, start: int = 0, stop: int = 11) -> list[tuple[object, bytes, bytes]]:
    batches = sources.loader.batches(start, stop)
    return [(batch.keys, batch.image.numpy().tobytes(), batch.mask.numpy().tobytes()) for batch in batches]


def tars(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*.tar")}


# -------------------------------------------------------------------- the same as local


@pytest.mark.parametrize("options", [{}, {"shuffle_window": 1}, {"mask_source": "pool", "workers": 0}], ids=str)
def test_global_batches_are_those_of_the_same_shards_on_this_machine(server, shards, tmp_path, options):
    local = open_them(str(shards), tmp_path / "unused", **options)
    remote = open_them(server.url, tmp_path / "cache", **options)
    assert digest(remote) == digest(local)
    assert (remote.fingerprint, remote.total_steps) == (local.fingerprint, local.total_steps)
    whole = remote.validation.batch(range(5))  # type: ignore[union-attr]
    assert torch.equal(whole.image, local.validation.batch(range(5)).image)  # type: ignore[union-attr]
    assert {name: count for name, count in server.requests.items() if name != "index.json"} == {
        "train-000000.tar": 1, "train-000001.tar": 1, "train-000002.tar": 1, "val-000000.tar": 1, "val-000001.tar": 1,
    }  # fmt: skip


def test_a_resume_in_the_middle_and_other_ranks_see_the_same_global_batches(server, shards, tmp_path):
    whole = digest(open_them(str(shards), tmp_path / "unused"))
    assert digest(open_them(server.url, tmp_path / "cache"), 6) == whole[6:]
    parts = [
        digest(open_them(server.url, tmp_path / "other", rank=rank, world=2, batch_size=2), 0, 11) for rank in (0, 1)
    ]
    assert [first[0] + second[0] for first, second in zip(*parts, strict=True)] == [keys for keys, *_ in whole]
    assert [first[1] + second[1] for first, second in zip(*parts, strict=True)] == [pixels for _, pixels, _ in whole]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_any_url_of_fsspec_is_read(shards, tmp_path, scheme):
    import fsspec

    url = f"file://{shards}"
    if scheme == "memory":
        url = f"memory://{tmp_path.name}/set"
        for path in shards.iterdir():
            if path.is_file():
                fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/set/{path.name}", path.read_bytes())
    assert digest(open_them(url, tmp_path / "cache")) == digest(open_them(str(shards), tmp_path / "unused"))
    assert len(tars(tmp_path / "cache")) == 3


def test_a_run_trains_on_remote_shards_and_goes_on_with_local_ones(server, shards, run_train, tmp_path):
    secret = server.url.replace("http://", "http://me:pass%20word@")
    remote = ("--shards", f"{secret}?token=hidden", "--allow-remote", "--shard-cache", str(tmp_path / "cache"))
    flags = ("--batch-size", "2", "--sample-every", "9", "--eval-every", "9", "--checkpoint-every", "9")
    folder = run_train(*remote, *flags, "--max-steps", "2")
    local = run_train(*flags, "--max-steps", "2", name="local")
    weights = [load_file(path / "generator.safetensors") for path in (folder, local)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    run_train(*flags, "--max-steps", "3")
    log = (folder / "log.txt").read_text()
    assert f"http://***@{server.url.removeprefix('http://')}, " in log and "going on from" in log
    assert all(
        path == "/set/index.json?token=hidden" or path.endswith(".tar?token=hidden") for path, _ in server.headers
    )
    assert {headers["Authorization"] for _, headers in server.headers} == {"Basic bWU6cGFzcyB3b3Jk"}


# -------------------------------------------------------------------- a server that fails


@pytest.mark.parametrize("fault", [503, 429, "cut", "flip", "hang"])
def test_a_request_that_fails_is_made_again(server, tmp_path, fault):
    server.faults = {"train-000001.tar": [fault, fault], "index.json": [503]}
    remote = a_remote(server.url, tmp_path / "cache")
    index = an_index(remote)
    os.close(remote.open(index.shards[1]))
    assert server.requests == {"index.json": 2, "train-000001.tar": 3}
    assert (tmp_path / "cache" / f"{index.shards[1].sha256}.tar").read_bytes() == (
        server.folder / "train-000001.tar"
    ).read_bytes()
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (503, "the server says 503 .* tries"),
        ("cut", "broke off after"),
        ("flip", "its sha256 is not the one in the index.*upload both again"),
        ("hang", "timed out"),
    ],
)
def test_when_tries_are_used_up_one_error_names_url_and_cure(server, tmp_path, fault, said):
    server.faults = {"train-000001.tar": [fault] * 9}
    remote = a_remote(server.url.replace("//", "//u:pw@") + "?key=abc", tmp_path / "cache")
    index = an_index(remote)
    with pytest.raises(RemoteError, match=f"/set/train-000001.tar: {said}") as raised:
        remote.open(index.shards[1])
    assert server.requests["train-000001.tar"] == HASTY.tries
    assert "pw" not in str(raised.value) and "abc" not in str(raised.value)
    assert not list((tmp_path / "cache").glob("*.tar*"))


def test_what_is_not_there_is_asked_for_once(server, tmp_path):
    (server.folder / "train-000001.tar").unlink()
    remote = a_remote(server.url, tmp_path / "cache")
    with pytest.raises(RemoteError, match=r"train-000001.tar: the server says 404 .*look at the URL"):
        remote.open(an_index(remote).shards[1])
    assert server.requests["train-000001.tar"] == 1
    with pytest.raises(RemoteError, match=r"/nothing/index.json: the server says 404"):
        a_remote(server.url.replace("/set", "/nothing"), tmp_path / "cache").refresh_index()
    (server.folder / "index.json").write_text("<html>please log in</html>")
    with pytest.raises(RemoteError, match=r"index.json: is no index of shards; name the folder that has one"):
        a_remote(server.url, tmp_path / "other").refresh_index()


def test_waiting_grows_and_is_a_function_of_whole_numbers():
    patience = Patience(first_wait=1.0, longest_wait=6.0)
    waits = [patience.wait(attempt, 7) for attempt in range(5)]
    assert waits == [patience.wait(attempt, 7) for attempt in range(5)]
    assert waits != [patience.wait(attempt, 8) for attempt in range(5)]
    assert all(least / 2 <= wait <= least for wait, least in zip(waits, (1, 2, 4, 6, 6), strict=True))


# -------------------------------------------------------------------- the index


def test_the_index_is_fetched_once_kept_and_fetched_anew_when_it_changes(server, shards, tmp_path):
    remote = a_remote(server.url, tmp_path / "cache")
    first = an_index(remote)
    assert len(an_index(remote)) == len(first) and (server.requests["index.json"], server.not_modified) == (2, 1)
    with_token = a_remote(server.url.replace("//", "//u:p@") + "?t=1", tmp_path / "cache")
    assert with_token.folder == remote.folder
    an_index(with_token)
    assert server.not_modified == 2
    lines = (server.folder / "index.json").read_text().split("\n")
    (server.folder / "index.json").write_text("\n".join(lines).replace('"size":32', '"size":64', 1))
    assert an_index(remote).size == 64 and server.not_modified == 2


def test_without_the_server_a_run_starts_by_the_index_and_the_shards_that_are_here(server, tmp_path):
    whole = digest(open_them(server.url, tmp_path / "cache"))
    server.faults = {name: [503] * 99 for name in server.requests}
    again = open_them(server.url, tmp_path / "cache")
    assert any("the index of an earlier run is used" in note for note in again.notes)
    assert digest(again) == whole


# -------------------------------------------------------------------- several processes

READ_ALL = """
import sys, pathlib
from inpaint_dist.data.shard_cache import RemoteShards
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shards import ShardIndex
from dataclasses import replace
remote = RemoteShards(url=sys.argv[1], cache=pathlib.Path(sys.argv[2]), limit=int(sys.argv[3]))
remote.refresh_index()
index = replace(ShardIndex.load(remote.folder, "train"), remote=remote)
reader = ShardReader(index)
for times in range(int(sys.argv[4])):
    for sample in range(len(index)):
        reader.read(sample, "jpg")
"""


def read_all(server, cache: Path, processes: int, limit: int = 10**9, times: int = 1) -> None:
    words = [sys.executable, "-c", READ_ALL, server.url, str(cache), str(limit), str(times)]
    started = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(processes)]
    for process in started:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said


def test_processes_of_a_machine_share_one_download(server, tmp_path):
    server.faults = {name: ["slow"] for name in ("index.json", "train-000000.tar", "train-000001.tar")}
    read_all(server, tmp_path / "cache", processes=3)
    assert server.requests == {"index.json": 3, "train-000000.tar": 1, "train-000001.tar": 1, "train-000002.tar": 1}
    assert server.not_modified == 2


def test_processes_with_room_for_one_shard_take_turns_and_stay_within_it(server, tmp_path):
    limit = max(path.stat().st_size for path in server.folder.glob("train*.tar"))
    read_all(server, tmp_path / "cache", processes=2, limit=limit, times=2)
    assert len(tars(tmp_path / "cache")) == 1
    assert server.requests["train-000001.tar"] >= 2
    assert not list((tmp_path / "cache").glob("*.part"))


def test_what_a_killed_process_left_is_taken_over(server, tmp_path):
    """A process that is killed in the middle of a download leaves a part of full size, and no lock."""
    server.faults = {"train-000000.tar": ["hang"]}
    cache = tmp_path / "cache"
    words = [sys.executable, "-c", READ_ALL, server.url, str(cache), str(10**9), "1"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (parts := list(cache.glob("*.part"))) or not parts[0].stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    remote = a_remote(server.url, cache, limit=10**5)
    index = an_index(remote)
    limit = index.shards[0].bytes + index.shards[1].bytes
    remote = a_remote(server.url, cache, limit)
    os.close(remote.open(index.shards[1]))
    assert not list(cache.glob("*.part"))  # it counted for nothing
    os.close(remote.open(index.shards[0]))
    assert len(tars(cache)) == 2


# -------------------------------------------------------------------- room


def test_the_shard_used_longest_ago_makes_room_but_none_that_is_read(server, tmp_path):
    index = an_index(a_remote(server.url, tmp_path / "cache"))
    zero, one, two = index.shards
    remote = a_remote(server.url, tmp_path / "cache", zero.bytes + one.bytes + two.bytes - 1)
    held = remote.open(zero)
    os.close(remote.open(one))
    os.utime(tmp_path / "cache" / f"{zero.sha256}.tar", (1, 1))  # the oldest, but it is being read
    os.close(remote.open(two))
    assert tars(tmp_path / "cache") == {f"{zero.sha256}.tar", f"{two.sha256}.tar"}
    assert os.pread(held, 9, 0) == (server.folder / zero.name).read_bytes()[:9]
    os.close(held)
    os.close(remote.open(one))
    assert tars(tmp_path / "cache") == {f"{one.sha256}.tar", f"{two.sha256}.tar"}


def test_reading_counts_as_use_and_shards_needed_next_stay(server, tmp_path):
    import threading

    index = an_index(a_remote(server.url, tmp_path / "cache"))
    zero, one, two = index.shards
    remote = a_remote(server.url, tmp_path / "cache", zero.bytes + one.bytes + two.bytes - 1)
    for shard in (zero, one):
        os.close(remote.open(shard))
        os.utime(tmp_path / "cache" / f"{shard.sha256}.tar", (1, 1 + shard.samples))
    os.close(remote.open(zero))
    ahead = lambda needed: remote.fetch_ahead(two, needed, threading.Event())  # noqa: E731
    assert not ahead({zero.sha256, one.sha256, two.sha256})
    assert tars(tmp_path / "cache") == {f"{zero.sha256}.tar", f"{one.sha256}.tar"}
    assert ahead(set())
    assert tars(tmp_path / "cache") == {f"{zero.sha256}.tar", f"{two.sha256}.tar"}


def test_a_copy_that_was_damaged_here_is_fetched_again(server, tmp_path):
    sources = open_them(server.url, tmp_path / "cache")
    whole = digest(sources)
    for path in (tmp_path / "cache").glob("*.tar"):
        data = bytearray(path.read_bytes())
        data[600:] = bytes(len(data) - 600)
        path.write_bytes(data)
    server.requests.clear()
    assert digest(sources) == whole
    assert {name: count for name, count in server.requests.items() if name.startswith("train")} == {
        f"train-00000{number}.tar": 1 for number in range(3)
    }


def test_a_cache_too_small_for_a_shard_is_refused_and_one_for_the_set_is_said(server, shards, tmp_path):
    with pytest.raises(UsageError, match=r"--shard-cache-gb 1e-06: .*/set/train-00000\d.tar alone has"):
        open_them(server.url, tmp_path / "cache", shard_cache_gb=1e-6)
    sizes = [path.stat().st_size for path in shards.glob("train*.tar")]
    small = {"shard_cache_gb": (sum(sizes) - 1) / 1e9, "workers": 1}
    sources = open_them(server.url, tmp_path / "cache", **small)
    assert [note for note in sources.notes if "the cache holds some 2 of the 3 shards" in note]
    assert any("start with --shuffle-window 1" in note for note in sources.notes)
    assert digest(sources) == digest(open_them(str(shards), tmp_path / "unused"))
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar*")) < sum(sizes)
    windowed = open_them(server.url, tmp_path / "cache", **small, shuffle_window=1)
    assert not [note for note in windowed.notes if "cache" in note]


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--shard-cache .*file.*name another folder"):
        open_them(server.url, tmp_path / "file" / "cache")


# -------------------------------------------------------------------- ahead


def test_shards_are_fetched_before_they_are_read(server, tmp_path):
    """The first batch is asked for and then nothing: what comes next arrives all the same."""
    sources = open_them(server.url, tmp_path / "cache", workers=0, batch_size=1, shuffle_window=1)
    batches = sources.loader.batches(0, 30)
    next(batches)
    deadline = time.monotonic() + 30
    while len(tars(tmp_path / "cache")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    batches.close()  # type: ignore[attr-defined]
    assert all(server.requests[f"train-00000{number}.tar"] == 1 for number in range(3))


def test_a_shard_that_cannot_be_had_ahead_is_an_error_only_when_it_is_read(server, tmp_path):
    sources = open_them(server.url, tmp_path / "cache", workers=0, batch_size=1, shuffle_window=1)
    reads = [int(sources.loader.index.shard_of[sources.loader.draws(step)[0].index]) for step in range(11)]
    last = sources.loader.index.shards[reads[-1]].name
    server.faults = {last: [503] * 99}
    before = reads.index(reads[-1])
    assert len(digest(sources, 0, before)) == before
    with pytest.raises(UserError, match=f"{last}: the server says 503"):
        digest(sources, before, 11)


# -------------------------------------------------------------------- tars of others, elsewhere


def streamed(shards: str, cache: Path, **options: object) -> list[str]:
    """The keys of 11 samples, one epoch of one process without workers."""
    options = {"batch_size": 1, "workers": 0, "size": 32, "shard_cache": cache, **options}
    sources = open_sources(
        DataConfig(shards=shards, **options), Place(0, 1, CPU), seed=3, epochs=1, max_steps=11, parts=1
    )
    assert "epochs are not exact" in sources.notes[0]
    return sorted(batch.keys[0] for batch in sources.loader.batches(0, 11))


def test_remote_tars_of_others_are_streamed_each_fetched_whole_once_an_epoch(server, shards, tmp_path):
    server.faults = {"train-000001.tar": [503, "cut"]}
    url = server.url.replace("//", "//u:pw@") + "/train-{000000..000002}.tar?key=abc"
    keys = streamed(url, tmp_path / "cache", allow_remote=True)
    assert keys == sorted(ShardIndex.load(shards, "train").keys)
    assert server.requests == {"train-000000.tar": 1, "train-000001.tar": 3, "train-000002.tar": 1}
    assert not list((tmp_path / "cache").iterdir())
    server.faults = {f"train-00000{number}.tar": ["cut"] * 9 for number in range(3)}
    with pytest.raises(
        UserError, match=r"^--shards: http://\*\*\*@.*/set/train-00000\d.tar\?\*\*\*: broke off"
    ) as raised:
        streamed(url, tmp_path / "cache", allow_remote=True)
    assert "pw" not in str(raised.value) and "abc" not in str(raised.value)
    with pytest.raises(UsageError, match=r"train-\{.*tar\?\*\*\*: the length of an epoch is unknown: give --max-steps"):
        open_them(url, tmp_path / "cache")


def test_a_commands_output_is_streamed_and_its_failure_is_an_error(shards, tmp_path):
    pattern = f"{shards}/train-{{000000..000002}}.tar"
    keys = streamed(f"pipe:cat {pattern} | gzip -c", tmp_path, allow_pipe=True)
    assert keys == sorted(ShardIndex.load(shards, "train").keys)
    with pytest.raises(UserError, match=r"^--shards: pipe:\*\*\*: the command failed \(exit code 3\)"):
        streamed(f"pipe:head -c 2000 {shards}/train-000000.tar; exit 3", tmp_path, allow_pipe=True)
    with pytest.raises(UsageError, match=r"--val-shards: a command's output"):
        DataConfig(val_shards="pipe:cat x.tar", allow_pipe=True)


# -------------------------------------------------------------------- permission and secrets


def test_nothing_is_contacted_without_the_flag(server, tmp_path):
    for place in (server.url, "s3://bucket/set", "file:///tmp/set", "memory://set", "simplecache::http://h/set"):
        with pytest.raises(UsageError, match=r"--shards .*: add --allow-remote"):
            DataConfig(shards=place)
        with pytest.raises(UsageError, match=r"--val-shards .*: add --allow-remote"):
            DataConfig(val_shards=place)
    with pytest.raises(UsageError, match=r"--shards pipe:\*\*\*: add --allow-pipe"):
        DataConfig(shards="pipe:curl -u me:secret http://h/x.tar", allow_remote=True)
    assert not server.requests


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host:80/a/b", "https://***@host:80/a/b"),
        ("https://host/a?sig=x%2F&t=@b", "https://***@b"),
        ("https://host/a?sig=x", "https://host/a?***"),
        ("--shards=https://me:p@w/d@host/a#x", "--shards=https://***@host/a?***"),
        ("simplecache::s3://key:secret@bucket/x", "simplecache::s3://***@bucket/x"),
        ("--data.shards=pipe:curl -u me:pw x", "--data.shards=pipe:***"),
        ("error: http://u:p@h/a and http://i:q@j/b", "error: http://***@h/a and http://***@j/b"),
        ("https://h/a?***: broke off", "https://h/a?***: broke off"),
        ("shards/train-{0..9}?.tar", "shards/train-{0..9}?.tar"),
    ],
)
def test_what_may_be_secret_in_a_url_is_not_shown(text, shown):
    assert redacted(text) == shown


def test_a_run_folder_holds_no_secret(server, tiny, tmp_path, monkeypatch, capfd):
    url = server.url.replace("//", "//user:pass@") + "?token=hidden"
    flags = ["unet", "--shards", url, f"--val-shards={url}", "--allow-remote", "--shard-cache", str(tmp_path / "cache")]
    flags += ["--output-dir", str(tmp_path / "run"), *tiny, "--max-steps", "2", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    train.main(flags)
    server.faults = {name: [403] * 9 for name in ("index.json",)}
    with pytest.raises(UserError, match=r"http://\*\*\*@127.*403"):
        train.main(flags)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()] + [*(tmp_path / "cache").rglob("*.json")]
    assert {"config.json", "command.txt", "log.txt", "seen.json"} <= {path.name for path in files}
    for path in files:
        assert not [secret for secret in (b"pass@", b"hidden") if secret in path.read_bytes()], path
    said = capfd.readouterr()
    assert "hidden" not in said.out + said.err and "pass@" not in said.out + said.err
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["data"]["shards"].endswith("/set?***")


def test_a_lock_goes_with_its_process_and_means_in_use(server, tmp_path):
    remote = a_remote(server.url, tmp_path / "cache")
    index = an_index(remote)
    descriptor = remote.open(index.shards[0])
    with (tmp_path / "cache" / f"{index.shards[0].sha256}.tar").open("r+b") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_reader_of_remote_shards_keeps_none_in_use(server, tmp_path, monkeypatch):
    from dataclasses import replace

    remote = a_remote(server.url, tmp_path / "cache")
    reader = ShardReader(replace(an_index(remote), remote=remote))
    expected = [reader.read(0, "jpg"), reader.read(0, "mask.png")]
    with monkeypatch.context() as patch:
        patch.setattr(reader, "read", None)  # read together, they need it not
        assert [bytes(data) for data in reader.read_together([(0, "jpg"), (0, "mask.png")])] == expected
    path = next((tmp_path / "cache").glob("*.tar"))
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(tmp_path / "cache")


# -------------------------------------------------------------------- check_shards


def test_shards_on_a_server_are_checked_byte_for_byte_and_what_is_wrong_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = CheckConfig(shards=f"{server.url}?token=secret", allow_remote=True)
    report = check_shards(config)
    assert report.lines() == ["16 samples in 5 shards read byte for byte: no fault"]
    assert set(server.requests.values()) == {1}
    server.faults = {
        "train-000001.tar": ["flip"],
        "train-000002.tar": [404],
        "val-000000.tar": ["cut", 503],
        "val-000001.tar": [503],
    }
    faults = [str(fault) for fault in check_shards(config).faults]
    assert len(faults) == 3 and "secret" not in str(faults)
    assert re.search(r"^train-000001.tar: .*(changed|sha256)", faults[0])
    assert re.search(r"^train-000002.tar: cannot be had, with 3 samples \(.*the server says 404", faults[1])
    assert re.search(r"^val-000000.tar: cannot be had, .*\(2 tries\)", faults[2])
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"http://\*\*\*@host/set: add --allow-remote"),
        ({"allow_remote": True, "fast": True}, "--fast: is for folders of this machine"),
        ({"allow_remote": True, "near_duplicates": True}, "--near-duplicates: is for folders of this machine"),
    ],
)
def test_what_is_not_done_with_a_url_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        CheckConfig(shards="http://me:secret@host/set", **options)
