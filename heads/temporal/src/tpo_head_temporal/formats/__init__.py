"""Moments in time, as they are published: one class a layout, each a command `tpo convert NAME`. No torch in here."""

FORMATS = {
    "activitynet-captions": "documents:ActivityNetCaptions",
    "charades-sta": "lines:CharadesSTA",
    "didemo": "documents:DiDeMo",
    "hirest": "documents:HiREST",
    "llava-hound-dpo": "conversations:LLaVAHoundDPO",
    "nlq": "documents:NLQ",
    "queryd": "queryd:QuerYD",
    "qvhighlights": "lines:QVHighlights",
    "tacos": "documents:TACoS",
    "timelens-100k": "lines:TimeLens100K",
    "timelens-bench": "documents:TimeLensBench",
    "videochat2-it": "conversations:VideoChat2IT",
    "youcook2": "documents:YouCook2",
}
"""Module and class in here, by the name of the format."""
