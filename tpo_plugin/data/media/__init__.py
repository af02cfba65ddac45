"""Pictures and video clips from files, as they are. Nothing is kept open: a reader lives within one call, in the
process that calls. No torch in here.
"""

from tpo_plugin.data.media.backends import BACKENDS
from tpo_plugin.data.media.pictures import ImageOptions, read_image
from tpo_plugin.data.media.videos import (
    VideoClip,
    VideoOptions,
    listed_files,
    read_frame,
    read_frames,
    read_video,
    stream_video,
    video_file,
)
from tpo_plugin.data.media.writing import write_video

__all__ = [
    "BACKENDS",
    "ImageOptions",
    "VideoClip",
    "VideoOptions",
    "listed_files",
    "read_frame",
    "read_frames",
    "read_image",
    "read_video",
    "stream_video",
    "video_file",
    "write_video",
]
