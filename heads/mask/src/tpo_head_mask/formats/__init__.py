"""Masks and tracks, as they are published: one class a layout, each a command `tpo convert NAME`. No torch in here."""

FORMATS = {
    "davis": "vos:DAVIS",
    "folder": "folder:Folder",
    "got-10k": "tracks:GOT10k",
    "grand-f": "pictures:GranDf",
    "lasot": "tracks:LaSOT",
    "mevis": "vos:MeViS",
    "reason-seg": "pictures:ReasonSeg",
    "ref-davis": "vos:RefDAVIS",
    "ref-sav": "sav:RefSAV",
    "ref-youtube-vos": "vos:RefYouTubeVOS",
    "sa-v": "sav:SAV",
    "semantic": "pictures:Semantic",
    "youtube-vos": "vos:YouTubeVOS",
}
"""Module and class in here, by the name of the format."""
