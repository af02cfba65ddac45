"""WebDataset's shards: every sample once, with its media, and what is wrong named by shard and sample."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import chat, picture, write_lines, write_shards, write_tar
from torch.utils.data import DataLoader

from tpo_plugin.data import RecordDataset, Records, read_sample
from tpo_plugin.data.opening import open_source
from tpo_plugin.data.packed import Packed
from tpo_plugin.data.shards import RecordShards
from tpo_plugin.data.storage import CACHE_VARIABLE
from tpo_plugin.errors import MediaError, RecordError

NUM = 23
RECORDS, PICTURES = [chat(f"r{i}") for i in range(NUM)], [picture(i) for i in range(NUM)]


def first_pixels(samples: list[Any]) -> list[tuple[str, Any]]:
    return [(sample.record.id, sample.images[0].getpixel((0, 0))) for sample in samples]


def test_every_sample_is_there_once_with_its_own_picture(tmp_path: Path, tpo: Any) -> None:
    (tmp_path / "plain").mkdir()
    plain = Records(write_lines(tmp_path / "plain", RECORDS, PICTURES), tpo)
    pattern = write_shards(tmp_path, RECORDS, PICTURES, 5)
    for name in (pattern, f"{tmp_path}/*.tar"):
        records = Records(name, tpo)
        assert len(records) == NUM
        assert [record.id for record in records] == [f"r{i}" for i in range(NUM)]
        assert first_pixels(list(map(read_sample, records))) == first_pixels(list(map(read_sample, plain)))
    assert records.files == [tmp_path / f"{shard:03}.tar" for shard in range(5)]
    assert records.place(7) == f"{tmp_path}/001.tar[0007]"
    assert records[7].turns == plain[7].turns
    assert str(records[7].images[0]) == f"{tmp_path}/001.tar/0007.png"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_read_each_sample_once_in_the_order_of_plain_files(tmp_path: Path, tpo: Any, num_workers: int) -> None:
    (tmp_path / "plain").mkdir()
    names = [write_lines(tmp_path / "plain", RECORDS, PICTURES), write_shards(tmp_path, RECORDS, PICTURES, 4)]
    found = []
    for name in names:
        dataset = RecordDataset([Records(name, tpo)], weights=[1], seed=3)
        found.append([x for b in DataLoader(dataset, 4, num_workers=num_workers, collate_fn=first_pixels) for x in b])
    assert found[0] == found[1]
    assert {name for name, _ in found[1]} == {f"r{i}" for i in range(NUM)}


def test_media_by_their_ending_or_name_and_beside_the_shard(tmp_path: Path, tpo: Any) -> None:
    media = [(f"a/x.{ending}", picture(n)) for n, ending in enumerate(("1.png", "0.PNG", "jpg"))]
    turns = [{"from": "human", "value": "<image>" * 4}, {"from": "gpt", "value": "y"}]
    named = {"conversations": turns, "image": ["0.png", "x.1.png", "a/x.jpg", "beside.png"]}
    write_tar(tmp_path / "a.tar", [("a/x.json", json.dumps(named).encode()), *media, ("a/x.txt", b"not a picture")])
    images = Records(tmp_path / "a.tar", tpo)[0].images
    assert [str(image) for image in images] == [
        *(f"{tmp_path}/a.tar/a/{name}" for name in ("x.0.PNG", "x.1.png", "x.jpg")),
        f"{tmp_path}/beside.png",
    ]
    assert [isinstance(image, Packed) for image in images] == [True, True, True, False]
    assert [image.read() for image in images[:3]] == [media[1][1], media[0][1], media[2][1]]


def test_a_video_is_read_from_the_cache(
    tmp_path: Path, tpo: Any, steady_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    turns = [{"from": "human", "value": "<video>x"}, {"from": "gpt", "value": "y"}]
    sample = [("1.json", json.dumps({"conversations": turns}).encode()), ("1.mp4", steady_video.read_bytes())]
    write_tar(tmp_path / "v.tar", sample)
    for confine in (False, True):
        record = Records(tmp_path / "v.tar", tpo, confine=confine)[0]
        read = read_sample(record)
        (file,) = read.record.videos
        assert (file.is_file(), file.suffix) == (True, ".mp4")
        assert read.videos[0].duration_s == 2.0
        assert np.asarray(read.picture()).shape == (48, 64, 3)
    playlist = ("1.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    write_tar(tmp_path / "v.tar", [sample[0], playlist])
    with pytest.raises(MediaError, match="is no video that holds its own frames"):
        read_sample(Records(tmp_path / "v.tar", tpo, confine=True)[0])


def test_packed_shards_and_little_memory(tmp_path: Path) -> None:
    write_shards(tmp_path, RECORDS, PICTURES, 5)
    packed = tmp_path / "z.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "000.tar").read_bytes()))
    source = open_source(packed)
    assert isinstance(source, RecordShards)
    assert [source[i]["id"] for i in range(len(source))] == [f"r{i}" for i in range(5)]
    many = RecordShards([str(write_tar(tmp_path / "m.tar", [(f"{i}.json", b"{}") for i in range(1000)]))])
    assert len(pickle.dumps(many)) < 25_000


TURNS = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
GOOD = ("0001.json", json.dumps({"conversations": TURNS}).encode())
WRONG = {
    "no record": ([GOOD, ("0002.png", b"x")], r"1.tar: \[0002\]: has no 0002.json with its record, but 0002.png"),
    "no JSON": ([("0001.json", b"{")], r"1.tar: \[0001\]: is not valid JSON: "),
    "no object": ([("0001.json", b"3")], r"1.tar: \[0001\]: is 3, expected an object"),
    "two": ([GOOD, ("0002.json", b"{}"), GOOD], r"1.tar: \[0001\]: stands at two places"),
    "twice": ([GOOD, GOOD], r"1.tar: \[0001\]: has two files of one name: 0001.json, 0001.json"),
    "a field": ([("0001.json", b"{}")], r"1.tar: \[0001\].conversations: is missing"),
    "nothing": ([], "1.tar: holds no file"),
    "records": ([("a/r.jsonl", b"")], "1.tar: holds a file of records; name that: .*1.tar/a/r.jsonl"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_shard_and_sample(tmp_path: Path, tpo: Any, case: str) -> None:
    members, message = WRONG[case]
    write_shards(tmp_path, RECORDS[:2], PICTURES, 2)
    write_tar(tmp_path / "1.tar", members)
    with pytest.raises(RecordError, match=message):
        Records(f"{tmp_path}/*.tar", tpo)


def test_a_shard_that_is_cut_off_or_missing(tmp_path: Path, tpo: Any) -> None:
    pattern = write_shards(tmp_path, RECORDS, PICTURES, 20)
    records = Records(pattern, tpo)
    path = tmp_path / "001.tar"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for cut in (300, end // 2 // 512 * 512, (end // 512 + 1) * 512):
        path.write_bytes(whole[:cut])
        with pytest.raises(RecordError, match=r"001.tar: cannot be read as a shard: "):
            Records(pattern, tpo)
    path.write_bytes(whole[:1024])
    with pytest.raises(RecordError, match=r"001.tar: sample 1 cannot be read any more"):
        records[21]
    path.write_bytes(whole)
    record = records[20]
    path.write_bytes(whole[:600])
    with pytest.raises(MediaError, match=r"001.tar/0020.png: cannot be read as an image: .* ends within it"):
        read_sample(record)
    path.unlink()
    with pytest.raises(RecordError, match=r"001.tar: cannot be read as a shard: No such file"):
        Records(pattern, tpo)
    with pytest.raises(RecordError, match=r"x\*.tar: no file has such a name"):
        Records(f"{tmp_path}/x*.tar", tpo)


def test_a_broken_picture_is_replaced_and_reported(tmp_path: Path, tpo: Any) -> None:
    pattern = write_shards(tmp_path, RECORDS, [*PICTURES[:9], PICTURES[9][:50], *PICTURES[10:]], 5)
    dataset = RecordDataset([Records(pattern, tpo)], max_bad_share=0.1)
    served = [dataset[i].record.id for i in range(NUM)]
    assert served[:9] + served[10:] == [f"r{i}" for i in range(NUM) if i != 9]
    assert served[9] != "r9"
    (skipped,) = dataset.skipped
    assert (skipped.id, skipped.place) == ("r9", f"{tmp_path}/001.tar[0009]")
    assert "001.tar/0009.png: cannot be read as an image" in skipped.reason


def test_patterns_of_json_are_refused(tmp_path: Path, write_records: Callable[..., Path]) -> None:
    write_records(RECORDS, "a.jsonl")
    with pytest.raises(RecordError, match=r"names 1 file\(s\), as .*a.jsonl; expected .tar, .parquet or .arrow files"):
        open_source(tmp_path / "*.jsonl")
    with pytest.raises(RecordError, match=r"has the range \{9..1\}, which is empty"):
        open_source("{9..1}.tar")
