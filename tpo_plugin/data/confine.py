"""Media of records that others wrote: they may neither lie outside of their folder nor name a file that does."""

from __future__ import annotations

import os
from pathlib import Path

from tpo_plugin.checks import check_inside
from tpo_plugin.data.media import listed_files, video_file
from tpo_plugin.data.records import Record
from tpo_plugin.errors import MediaError
from tpo_plugin.extras import needed

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,gif,apng,h264,hevc,ivf,nut,mxf,wtv"
)
"""FFmpeg's names of containers that hold their frames themselves: a playlist is in none."""


def check_media(record: Record) -> None:
    """Raises `MediaError` for media of a confined record that lead out of its folder; of any other accepts all."""
    folder = record.confined_to
    if folder is None:
        return
    for image in record.images:
        if isinstance(image, Path):  # what stands in a shard leads nowhere
            _check(image, folder)
    for video in record.videos:
        if isinstance(video, Path):
            check_video(video, folder)
        else:
            _check_container(video_file(video))


def check_video(path: Path, folder: Path) -> None:
    """Raises `MediaError` for a video, or a list of frames, that lies or leads out of a folder."""
    _check(path, folder)
    if path.suffix == ".ffconcat":
        for file in listed_files(path):
            _check(file, folder)
    else:
        _check_container(path)


def _check(path: Path, folder: Path) -> None:
    try:
        check_inside("it", path, folder)
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error


def _check_container(path: Path) -> None:
    with needed():
        import av

    if not os.path.isfile(path):  # as its reader will say
        return
    try:
        av.open(str(path), container_options={"format_whitelist": CONTAINERS}).close()
    except Exception as error:  # FFmpeg has a class for each
        raise MediaError(f"{path}: is no video that holds its own frames ({type(error).__name__})") from error
