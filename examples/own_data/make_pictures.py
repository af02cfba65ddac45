"""Pictures with boxes in the form of COCO, and conversations about them: what stands in for data of your own.

    python make_pictures.py FOLDER [--pictures 300] [--held-out 100]

FOLDER/train and FOLDER/held_out then have pictures/, boxes.json (COCO: xywh in pixels, 12 categories) and chat.jsonl
(records of ordinary conversation, nine questions a picture). The pictures are those of the demo's world, drawn over
photographs in the public domain or CC0 that come with scikit-image; held-out ones stand on other photographs.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image
from tpo_shapes.dataset import make_record, write_records
from tpo_shapes.questions import CHAT, ask, objects_of
from tpo_shapes.world import COLOURS, PICTURE_SIZE, SHAPES, render, sample_backgrounds, sample_scenes

NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def make_pictures(folder: Path, split: str, number: int, seed: int) -> None:
    """Writes one part, "train" or "heldout"; the same arguments give the same files."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rng, words = np.random.default_rng(seed), random.Random(seed)
    scenes = sample_scenes(rng, number)
    frames = render(rng, scenes, sample_backgrounds(rng, number, split))
    images, annotations, chats = [], [], []
    for index in range(number):
        name = f"{index + 1:06d}.png"
        Image.fromarray(frames[index, 0]).save(folder / "pictures" / name)
        images.append({"id": index + 1, "file_name": name, "width": PICTURE_SIZE, "height": PICTURE_SIZE})
        objects = objects_of(scenes, index)
        for thing in objects:
            x0, y0, x1, y1 = (round(PICTURE_SIZE * value, 2) for value in thing.boxes_xyxy[0])
            box = {"bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            about = {"image_id": index + 1, "category_id": 1 + NAMES.index(thing.name)}
            annotations.append({"id": len(annotations) + 1, **about, **box})
        turns = ask(words, objects, dict.fromkeys(CHAT, 1.0), 9, clip=False)
        chats.append(make_record(f"chat-{index + 1}", f"pictures/{name}", turns))
    categories = [{"id": 1 + index, "name": name} for index, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    write_records(folder / "chat.jsonl", chats)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=100)
    given = parser.parse_args()
    make_pictures(given.folder / "train", "train", given.pictures, seed=1)
    make_pictures(given.folder / "held_out", "heldout", given.held_out, seed=2)


if __name__ == "__main__":
    main()
