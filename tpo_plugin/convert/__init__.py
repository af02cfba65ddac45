"""What a format is made of: `tpo convert` turns data as they are published into records. No torch in here."""

from tpo_plugin.convert.boxes import Boxes, Order
from tpo_plugin.convert.format import Entry, Format, FrameList, StoredPicture, formats
from tpo_plugin.convert.pickles import read_pickle
from tpo_plugin.convert.pictures import Picture, Side, picture
from tpo_plugin.convert.reading import Row, Rows, lines, local, parse_json, read_json, read_text
from tpo_plugin.convert.report import MISSING, Fault, Place, Report
from tpo_plugin.convert.wording import worded
from tpo_plugin.convert.write import convert, read_excluded

__all__ = [
    "MISSING",
    "Boxes",
    "Entry",
    "Fault",
    "Format",
    "FrameList",
    "Order",
    "Picture",
    "Place",
    "Report",
    "Row",
    "Rows",
    "Side",
    "StoredPicture",
    "convert",
    "formats",
    "lines",
    "local",
    "parse_json",
    "picture",
    "read_excluded",
    "read_json",
    "read_pickle",
    "read_text",
    "worded",
]
