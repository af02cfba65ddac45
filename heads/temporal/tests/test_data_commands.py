"""`tpo evaluate-moments` and `tpo cache-features`, and `tpo convert` with videos."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tpo_head_temporal import caching
from tpo_head_temporal.commands import register
from tpo_head_temporal.formats.lines import CharadesSTA, QVHighlights
from typer.testing import CliRunner

import tpo_plugin as tpo
import tpo_plugin.cli
from tpo_plugin.convert import convert


def run(*arguments: object) -> str:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def write_video(path: Path, num: int) -> None:
    """So many frames, 10 a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(num):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "part").mkdir(parents=True)
    write_video(folder / "part/A.mp4", 60)
    write_video(folder / "v_1.0_3.0.mkv", 20)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_no_torch_before_a_command_runs() -> None:
    code = (
        "import sys, typer, tpo_head_temporal.commands as c\n"
        "app = typer.Typer(); c.register(app)\n"
        "from tpo_plugin.convert import formats\n"
        "import tpo_head_temporal.qvhighlights; [spec.format_class() for spec in formats().values()]\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_commands_are_found(tmp_path: Path) -> None:
    code = "import sys; from tpo_plugin.cli import main; sys.argv[1:] = ['--help']; main()"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert all(name in found for name in ("evaluate-moments", "convert", "cache-features"))


def test_evaluate(tmp_path: Path) -> None:
    truth = {"qid": 1, "duration": 20, "relevant_windows": [[0, 12]]}
    truth |= {"relevant_clip_ids": [0, 1], "saliency_scores": [[2, 3, 4], [0, 0, 0]]}
    prediction = {"qid": 1, "pred_relevant_windows": [[0, 9, 0.5]], "pred_saliency_scores": [9, 1]}
    for name, line in (("p", prediction), ("t", truth)):
        (tmp_path / name).write_text(json.dumps(line))
    printed = run("evaluate-moments", tmp_path / "p", tmp_path / "t", "-o", tmp_path / "out.json")
    assert [line.split() for line in printed.splitlines()[:3]] == [
        ["MR-full-R1@0.3", "100.00"],
        ["MR-full-R1@0.5", "100.00"],
        ["MR-full-R1@0.7", "100.00"],
    ]
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["brief"]["MR-full-mIoU"] == 75.0
    assert results["HL-min-VeryGood"] == {"HL-mAP": 33.33, "HL-Hit1": 100.0}
    assert json.loads(run("evaluate-moments", tmp_path / "p", tmp_path / "t", "--json")) == results


def test_convert_charades_sta(tmp_path: Path, videos: Path) -> None:
    lines = [
        "A 0.0 2.5##first",
        "A 1 8.0##second",
        "A 7 8##third",
        "B 1 2##fourth",
        "broken 1 2##fifth",
        "A 3 2##sixth",
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    output = tmp_path / "records.jsonl"
    command = ["convert", "charades-sta", tmp_path / "train.txt", "--videos", videos, "-o", output]
    result = CliRunner().invoke(tpo_plugin.cli.app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "2 records written, 4 left out" in result.stdout
    for reason in (
        "spans that ended behind their video were cut to its end",
        "train.txt:6: start, end: is [3.0, 2.0]; expected [start, end] with 0 <= start < end",
        "train.txt:3: is [7.0, 8.0]; expected a span within A, which lasts 6.00 s",
        "train.txt:4: is 'B'; expected the name of a video in",
        "broken.mp4: ",
    ):
        assert reason in result.stdout
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["id"] for record in records] == ["charades-sta:A_1", "charades-sta:A_2"]
    assert records[0]["video"] == "videos/part/A.mp4"
    assert (output.parent / records[0]["video"]).is_file()
    assert records[1]["tasks"] == [{"head": "temporal", "spans": [[1.0, 6.0]], "query": "second", "duration": 6.0}]


def test_a_source_that_is_packed_or_far_away(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPO_CACHE", str(tmp_path / "cache"))
    packed = gzip.compress(b"A 0.0 2.5##first\nA 1 2")
    (tmp_path / "whole.txt.gz").write_bytes(packed)
    (tmp_path / "cut.txt.gz").write_bytes(packed[:-12])
    (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b"A"))
    with tarfile.open(tmp_path / "videos.tar", "w") as archive:
        archive.add(videos / "part", "part")

    def run_on(source: str) -> Any:
        command = ["convert", "charades-sta", source, "--videos", str(tmp_path / "videos.tar")]
        return CliRunner().invoke(tpo_plugin.cli.app, [*command, "-o", str(tmp_path / "records.jsonl")])

    result = run_on(str(tmp_path / "whole.txt.gz"))
    assert "1 records written, 1 left out" in result.stdout, result.exception
    assert f"{tmp_path}/whole.txt.gz:2: is 'A 1 2'; expected" in result.stdout  # not the copy in the cache
    (record,) = (json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines())
    assert (tmp_path / record["video"]).is_file()
    for source, message in (
        (f"{tmp_path}/empty.txt.gz", f"{tmp_path}/empty.txt.gz:1: is 'A'; expected"),
        (str(tmp_path / "cut.txt.gz"), "cut.txt.gz: cannot be unpacked: .*; it is cut off or damaged"),
        ("far://away/train.txt", "far://away/train.txt: cannot be fetched: Protocol not known"),
    ):
        with pytest.raises(tpo.TPOError, match=message):
            raise run_on(source).exception


def test_names_of_videos(tmp_path: Path, videos: Path) -> None:
    line = {"qid": 3, "query": "x", "vid": "v_1.0_3.0", "duration": 2, "relevant_windows": [[0, 2]]}
    (tmp_path / "val.jsonl").write_text(json.dumps(line))
    convert(QVHighlights(source=tmp_path / "val.jsonl", videos=videos), tmp_path / "records.jsonl")
    assert json.loads((tmp_path / "records.jsonl").read_text())["video"] == "videos/v_1.0_3.0.mkv"
    (tmp_path / "a.txt").write_text("A 0 1##x")
    write_video(videos / "A.mkv", 3)
    with pytest.raises(tpo.TPOError, match="video 'A' is there 2 times: .*; keep one"):
        convert(CharadesSTA(source=tmp_path / "a.txt", videos=videos), tmp_path / "out.jsonl")
    with pytest.raises(tpo.TPOError, match="no such folder of videos"):
        convert(CharadesSTA(source=tmp_path / "a.txt", videos=tmp_path / "nowhere"), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_prompts_are_checked_as_prompts(tmp_path: Path, videos: Path) -> None:
    line = {"qid": 3, "query": "x", "vid": "v_1.0_3.0", "duration": 2}
    (tmp_path / "test.jsonl").write_text(json.dumps(line))
    convert(QVHighlights(source=tmp_path / "test.jsonl", videos=videos), tmp_path / "p.jsonl")
    check = ["check", str(tmp_path / "p.jsonl"), "--heads", "temporal", "--media"]
    assert "ends with a 'human' turn" in CliRunner().invoke(tpo_plugin.cli.app, check).stdout
    result = CliRunner().invoke(tpo_plugin.cli.app, [*check, "--prompts"])
    assert (result.exit_code, result.stdout) == (0, "1 records: none wrong, 1 without tasks\n")


def test_cache_features_hands_on_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def stand_in(*arguments: Any, **options: Any) -> caching.CacheReport:
        given.update(options, arguments=arguments)
        return caching.CacheReport(computed=3)

    monkeypatch.setattr(caching, "cache_features", stand_in)
    options = ["--clip-s", "1", "--workers", "4", "--batch-size", "8", "--device", "meta", "--media-root", "m"]
    printed = run("cache-features", "r.jsonl", "--model", "clip", "-o", tmp_path, *options)
    assert "videos: 3 (3 computed, 0 were there, 0 cannot be read)" in printed
    assert given == {
        "arguments": (Path("r.jsonl"), "clip", tmp_path),
        "media_root": Path("m"),
        "clip_s": 1.0,
        "num_workers": 4,
        "batch_size": 8,
        "device": "meta",
        "confine": False,
    }
