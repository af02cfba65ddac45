"""Files behind URLs, packed and in tars: what is fetched and unpacked, kept, and refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tpo_plugin.data import Records, storage
from tpo_plugin.data.sources import RecordFile
from tpo_plugin.data.storage import local_path
from tpo_plugin.errors import RecordError

LINES = [{"id": i, "text": "x" * 100} for i in range(50)]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(storage.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def zst(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    half = len(data) // 2
    return b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))  # two frames, as parallel tools do


def tar(data: bytes, name: str = "part/records.jsonl") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


PACKED = {
    "a.jsonl": (lambda data: data, ""),
    "a.jsonl.gz": (gzip.compress, ""),
    "a.jsonl.zst": (zst, ""),
    "a.tar": (tar, "/part/records.jsonl"),
    "a.tar.gz": (lambda data: gzip.compress(tar(data)), "/part/records.jsonl"),
    "a.tgz": (lambda data: gzip.compress(tar(data)), "/part/records.jsonl"),
    "a.tar.zst": (lambda data: zst(tar(data)), "/part/records.jsonl"),
    "b.tar": (lambda data: tar(gzip.compress(data), "r.jsonl.gz"), "/r.jsonl.gz"),
}


@pytest.mark.parametrize("name", PACKED)
def test_records_of_packed_files(tmp_path: Path, name: str) -> None:
    pack, inside = PACKED[name]
    path = tmp_path / name
    path.write_bytes(pack(TEXT))
    records = RecordFile(f"{path}{inside}")
    assert [records[i] for i in range(len(records))] == LINES
    path.write_bytes(pack(b"{}\n" + TEXT))  # another state of the file
    assert len(RecordFile(f"{path}{inside}")) == 51


@pytest.mark.parametrize("name", [name for name in PACKED if name != "a.jsonl"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_file_that_is_cut_is_named(tmp_path: Path, cache: Path, name: str, share: float) -> None:
    pack, inside = PACKED[name]
    path, whole = tmp_path / name, pack(TEXT)
    if name.endswith(".tar"):  # what lies behind the last member is padding; cut just before it, it looks whole
        whole = whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512]
    cut = len(whole) if name.endswith(".tar") and share > 0.9 else int(share * len(whole))
    path.write_bytes(whole[:cut])
    with pytest.raises(RecordError, match=rf"{name}(: |.*)cannot be unpacked: .*; it is cut off or damaged"):
        local_path(f"{path}{inside}")
    assert not list(cache.rglob("*.jsonl"))


def test_a_tar_holds_what_was_named_and_nothing_outside(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar(TEXT))
    for inside in ("part/none.jsonl", "../../x"):
        with pytest.raises(RecordError, match=f"a.tar: holds no '{inside}'"):
            local_path(f"{path}/{inside}")
    assert (local_path(path) / "part/records.jsonl").read_bytes() == TEXT
    path.write_bytes(tar(TEXT, "../outside.jsonl"))
    with pytest.raises(RecordError, match=r"a.tar: cannot be unpacked: .*outside"):
        local_path(path)
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    with pytest.raises(RecordError, match="'link' is a link or a device"):
        local_path(path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An HTTP server on this machine, of the folder `web`; `cut` there ends in the middle."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(TEXT))
    (folder / "a.tar").write_bytes(tar(TEXT))

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/cut.jsonl":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", str(len(TEXT)))
            self.end_headers()
            self.wfile.write(TEXT[:100])

        def do_HEAD(self) -> None:
            if self.path != "/cut.jsonl":
                return super().do_HEAD()
            self.send_response(200)
            self.send_header("Content-Length", str(len(TEXT)))
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.tar/part/records.jsonl"])
def test_records_behind_a_url(server: str, tmp_path: Path, name: str) -> None:
    records = RecordFile(f"{server}/{name}")
    assert [records[i] for i in range(len(records))] == LINES
    before = local_path(f"{server}/{name}")
    assert local_path(f"{server}/{name}") == before
    assert records.name == f"{server}/{name}"
    file = tmp_path / "web/a.jsonl.gz"
    file.write_bytes(gzip.compress(TEXT + TEXT))
    (tmp_path / "web/a.tar").write_bytes(tar(TEXT + TEXT))
    assert len(RecordFile(f"{server}/{name}")) == 100


def test_a_tar_is_no_file_of_records_but_holds_one(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(TEXT))
    with pytest.raises(RecordError, match=r"a.tar: is a tar or a folder; .*, as in .*a.tar/part/records.jsonl$"):
        RecordFile(tmp_path / "a.tar")
    with pytest.raises(RecordError, match=f"{tmp_path}: is a tar or a folder; expected a file of records"):
        RecordFile(tmp_path)


def test_media_lie_beside_the_records_and_behind_no_url(tmp_path: Path, tpo: Any, server: str) -> None:
    turns = [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "y"}]
    text = json.dumps({"conversations": turns, "image": "a.png"}).encode()
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(text))
    assert Records(tmp_path / "r.jsonl.gz", tpo)[0].images == (tmp_path / "a.png",)
    (tmp_path / "media.tar").write_bytes(tar(b"a picture", "a.png"))
    (image,) = Records(tmp_path / "r.jsonl.gz", tpo, media_root=tmp_path / "media.tar")[0].images
    assert image.read_bytes() == b"a picture"
    (tmp_path / "web/a.tar").write_bytes(tar(text))
    inside = f"{server}/a.tar/part/records.jsonl"
    assert Records(inside, tpo)[0].images == (local_path(inside).parent / "a.png",)
    (tmp_path / "web/a.jsonl.gz").write_bytes(gzip.compress(text))
    assert Records(f"{server}/a.jsonl.gz", tpo)[0].images == (Path("a.png"),)
    (tmp_path / "r.jsonl").write_bytes(text.replace(b"a.png", b"https://a/b.png"))
    with pytest.raises(RecordError, match=r"r.jsonl:1: image: is 'https://a/b.png', a URL; expected a file"):
        Records(tmp_path / "r.jsonl", tpo)


@pytest.mark.parametrize(("name", "reason"), [("none.jsonl", "404, "), ("cut.jsonl", r"[\s\S]*100 of 6140 bytes")])
def test_a_url_that_fails_is_named(server: str, cache: Path, name: str, reason: str) -> None:
    with pytest.raises(RecordError, match=f"{server}/{name}: cannot be fetched: {reason}"):
        RecordFile(f"{server}/{name}")
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/a.jsonl", "cannot be fetched: Cannot connect to host 127.0.0.1:9"),
        ("nothing://a/b.jsonl", "cannot be fetched: Protocol not known: nothing"),
        ("hf://datasets/nobody/nothing/a.jsonl", "cannot be fetched: "),
    ],
)
def test_a_clear_no(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RecordError, match=f"^{url}: {message}"):
        RecordFile(url)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(RecordError, match="^s3://bucket/a.jsonl: cannot be fetched: Install s3fs to access S3"):
        local_path("s3://bucket/a.jsonl")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").write_bytes(b"x")
    with pytest.raises(RecordError, match=r"a.zst: cannot be unpacked: .*; pip install 'tpo-plugin\[remote\]'"):
        local_path(tmp_path / "a.zst")
