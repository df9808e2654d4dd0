"""Weights of others: a given path, else torch.hub's cache, else the official download, checked."""

import hashlib
from pathlib import Path

import pytest
import torch

from inpaint_dist.errors import UserError
from inpaint_dist.pretrained import VGG16, Pretrained, find_pretrained, read_pretrained

FLAG = "--some.weights"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def published(folder: Path, content: bytes, digits: str | None = None) -> Pretrained:
    """A file "on the web"."""
    name = f"net-{digits or hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    return Pretrained("a network", (folder / name).as_uri())


def test_the_official_files_name_tells_its_checksum():
    assert (VGG16.file, VGG16.sha256) == ("vgg16-397923af.pth", "397923af")


def test_a_given_path_comes_first_then_the_cache_then_the_download(tmp_path: Path, hub: Path):
    what = published(tmp_path, b"official")
    assert find_pretrained(what, None, FLAG).read_bytes() == b"official"
    assert find_pretrained(what, None, FLAG) == hub / what.file
    (hub / what.file).write_bytes(b"cached")
    assert find_pretrained(what, None, FLAG).read_bytes() == b"cached"
    mine = tmp_path / "mine.pth"
    mine.write_bytes(b"mine")
    assert find_pretrained(what, mine, FLAG) == mine


def test_a_download_of_another_checksum_is_refused_and_leaves_nothing(tmp_path: Path, hub: Path):
    what = published(tmp_path, b"tampered with", digits="0badc0de")
    with pytest.raises(UserError, match=r"a network: not in .*checkpoints, and not to be downloaded \(invalid hash"):
        find_pretrained(what, None, FLAG)
    assert list(hub.iterdir()) == []


def test_what_is_nowhere_is_one_error_that_says_where_to_get_it_and_where_to_put_it(tmp_path: Path, hub: Path):
    what = Pretrained("a network", (tmp_path / "gone-12345678.pth").as_uri())
    with pytest.raises(UserError, match=r"put file://.*gone-12345678\.pth there, or name the file by --some\.weights"):
        find_pretrained(what, None, FLAG)
    with pytest.raises(UserError, match=r"--some\.weights .*none\.pth: no such file"):
        find_pretrained(what, tmp_path / "none.pth", FLAG)


def test_tensors_come_back_in_float32_and_other_files_are_named(tmp_path: Path):
    torch.save({"a": torch.ones(2, dtype=torch.float16)}, tmp_path / "weights.pth")
    assert read_pretrained(tmp_path / "weights.pth")["a"].dtype == torch.float32
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth: not a file of weights"):
        read_pretrained(tmp_path / "list.pth")
