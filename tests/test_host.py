"""What every room asks of the machine: cores, and files that are whole or not there."""

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from inpaint_dist import host
from inpaint_dist.host import alone_in, cores_a_process, folder_written_whole, usable_cores, versions, written_whole


@pytest.fixture(autouse=True)
def groups(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of the test's own: none, until it writes some."""
    folder = tmp_path_factory.mktemp("groups")
    monkeypatch.setattr(host, "GROUPS", folder)
    monkeypatch.setattr(host, "OWN_GROUPS", folder / "own")
    return folder


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "\n"}, 8),
        ("0::/a.slice/b.scope\n", {"a.slice/cpu.max": "300000 100000", "a.slice/b.scope/cpu.max": "max 100000"}, 3),
        ("0::/outside/of/here\n", {"cpu.max": "300000 100000"}, 3),
        ("5:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ("5:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 8),
        ("4:memory:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 8),
        ("damaged\n", {}, 8),
    ],
)
def test_a_containers_share_of_time_limits_the_cores(
    own: str, files: dict[str, str], cores: int, groups: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (groups / "own").write_text(own)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_counted_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_without_affinity_all_cores_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(("processes", "share"), [(None, 9), ("1", 9), ("2", 4), ("4", 2), ("16", 1)])
def test_processes_of_one_machine_share_its_cores(processes: str | None, share: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "usable_cores", lambda: 9)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert cores_a_process() == share


def test_versions_are_told_of_the_packages_that_are_installed():
    found = versions(("numpy", "no-such-package-of-anybody"))
    assert found == {"python": platform.python_version(), "numpy": numpy.__version__}


def test_a_file_has_its_name_when_it_is_whole_and_not_before(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_whole(path) as part:
        part.write_text("new")
        assert part.parent == path.parent
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("begun", [False, True])
def test_what_was_not_finished_goes_and_the_older_file_stays(tmp_path: Path, error: BaseException, begun: bool):
    def break_off() -> None:
        with written_whole(path) as part:
            if begun:
                part.write_text("ha")
            raise error

    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(error)):
        break_off()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_and_its_folder_are_on_the_disk_before_and_after_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, synced = tmp_path / "a.json", []

    def fsync(descriptor: int) -> None:
        synced.append(("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file", path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(path) as part:
        part.write_text("new")
    assert synced == [("file", False), ("folder", True)]
    with written_whole(path, sync=False) as part:
        part.write_text("newer")
    assert len(synced) == 2
    assert path.read_text() == "newer"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_refuses_to_sync_the_file_is_told_and_one_that_cannot_sync_folders_is_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (kind == "folder"):
            raise OSError("not here")

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a.json"
    if kind == "file":
        with pytest.raises(OSError, match="not here"), written_whole(path) as part:
            part.write_text("new")
        assert list(tmp_path.iterdir()) == []
    else:
        with written_whole(path) as part:
            part.write_text("new")
        assert path.read_text() == "new"


def test_one_alone_writes_to_a_folder_until_it_is_done_and_nothing_is_left_there(tmp_path: Path):
    taken = ValueError("taken")
    with alone_in(tmp_path, taken):
        with pytest.raises(ValueError, match="taken"), alone_in(tmp_path, taken):
            pass
        assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path, taken):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_worker_that_outlives_its_parent_holds_no_folder(tmp_path: Path):
    """Such as a worker of webdataset's loader, which looks every few seconds only whether its parent is there."""
    code = f"""
import os, signal, time
from pathlib import Path
from inpaint_dist.host import alone_in
with alone_in(Path({str(tmp_path)!r}), ValueError()):
    if child := os.fork():
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(1)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    try:
        os.kill(int(done.stdout), 0)
        with alone_in(tmp_path, ValueError("held by a process that writes nothing")):
            pass
    finally:
        os.kill(int(done.stdout), 9)


def _spoil(folder: Path) -> None:
    (folder / "b").write_text("b")
    (folder / "b" / "c").mkdir()


def test_a_folder_appears_whole_or_not_at_all_and_nothing_of_anothers_is_touched(tmp_path: Path):
    with folder_written_whole(tmp_path / "pack") as part:
        (part / "masks").mkdir()
        (part / "masks" / "a").write_text("a")
        assert not (tmp_path / "pack").exists()
    assert (tmp_path / "pack" / "masks" / "a").read_text() == "a"
    with pytest.raises(NotADirectoryError), folder_written_whole(tmp_path / "other") as part:
        _spoil(part)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    (tmp_path / "third.part").mkdir()
    with pytest.raises(FileExistsError), folder_written_whole(tmp_path / "third"):
        pass
    assert (tmp_path / "third.part").is_dir()
