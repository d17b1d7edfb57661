"""The same labels written in every format: three images of two classes, rectangles all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
CLASSES = ("cat", "dog")
TRUTH = {
    "a": [("dog", (4, 5, 14, 25)), ("cat", (20, 2, 38, 12))],
    "b": [("cat", (10, 8, 30, 20))],
    "c": [],
}
"""Objects by image: x1, y1, x2, y2 in pixels, the lower right corner not inside."""
SPLITS = {"train": ("a", "c"), "val": ("b",)}


def image(path: Path, stem: str) -> None:
    """Paint the rectangles of an image on grey, in the colour of their class."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    for label, (x1, y1, x2, y2) in TRUTH[stem]:
        pixels[y1:y2, x1:x2] = (250, 0, 0) if label == "cat" else (0, 0, 250)
    pixels[0, 0] = ord(stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(values.astype(np.uint8), mode=None)
    if palette:
        made.putpalette([7 * v % 256 for v in range(768)])
    made.save(path)


def semantic(stem: str) -> np.ndarray:
    """Background 0, cat 1, dog 2."""
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for label, (x1, y1, x2, y2) in TRUTH[stem]:
        values[y1:y2, x1:x2] = 1 + CLASSES.index(label)
    return values


def ring(box) -> list[int]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def text(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def runs(box) -> list[int]:
    """Lengths of runs down the columns, for one rectangle."""
    x1, y1, x2, y2 = box
    inside = np.zeros((HEIGHT, WIDTH), dtype=int)
    inside[y1:y2, x1:x2] = 1
    flat = np.concatenate([[0], inside.T.reshape(-1), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff([0, *edges, WIDTH * HEIGHT]).tolist()


def coco_content(which: str, segmentation: str = "polygon", shift: int = 0) -> dict:
    """COCO's JSON; ids of categories have a gap."""
    images, annotations = [], []
    for number, stem in enumerate(SPLITS[which], start=1):
        images.append({
            "id": 10 * number,
            "file_name": f"{stem}.png",
            "width": WIDTH,
            "height": HEIGHT,
        })
        for label, box in TRUTH[stem]:
            outline = [ring(box)] if segmentation == "polygon" else []
            if segmentation == "runs":
                outline = {"size": [HEIGHT, WIDTH], "counts": runs(box)}
            x1, y1, x2, y2 = box
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": 10 * number,
                "category_id": {"cat": 3, "dog": 17}[label] + shift,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "segmentation": outline,
            })
    categories = [{"id": 17 + shift, "name": "dog"}, {"id": 3 + shift, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco(root: Path, segmentation: str = "polygon") -> Path:
    for which, stems in SPLITS.items():
        for stem in stems:
            image(root / f"{which}2017" / f"{stem}.png", stem)
        text(
            root / "annotations" / f"instances_{which}2017.json", coco_content(which, segmentation)
        )
    text(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    return root


def roboflow(root: Path) -> Path:
    for which, stems in SPLITS.items():
        folder = root / {"val": "valid"}.get(which, which)
        content = coco_content(which, "none")
        for category in content["categories"]:
            category["supercategory"] = "pets"
        content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        text(folder / "_annotations.coco.json", content)
        for stem in stems:
            image(folder / f"{stem}.png", stem)
    return root


def yolo(root: Path, polygons: bool = False) -> Path:
    for which, stems in SPLITS.items():
        for stem in stems:
            image(root / "images" / which / f"{stem}.png", stem)
            rows = []
            for label, (x1, y1, x2, y2) in TRUTH[stem]:
                box = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT]
                box += [(x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
                corners = np.array(ring((x1, y1, x2, y2))).reshape(-1, 2) / (WIDTH, HEIGHT)
                numbers = corners.reshape(-1) if polygons else box
                rows.append(" ".join(map(str, [CLASSES.index(label), *numbers])))
            if rows:
                text(root / "labels" / which / f"{stem}.txt", "\n".join(rows) + "\n")
    text(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


def voc(root: Path, based: int = 1) -> Path:
    for which, stems in SPLITS.items():
        text(root / "ImageSets" / "Main" / f"{which}.txt", "".join(f"{s}\n" for s in stems))
        for stem in stems:
            image(root / "JPEGImages" / f"{stem}.png", stem)
            objects = "".join(
                f"<object><name>{label}</name><bndbox><xmin>{x1 + based}</xmin>"
                f"<ymin>{y1 + based}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for label, (x1, y1, x2, y2) in TRUTH[stem]
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            text(root / "Annotations" / f"{stem}.xml", f"<annotation>{size}{objects}</annotation>")
    return root


def voc_masks(root: Path) -> Path:
    voc(root)
    for which, stems in SPLITS.items():
        text(root / "ImageSets" / "Segmentation" / f"{which}.txt", "\n".join(stems))
        for stem in stems:
            numbers = np.zeros((HEIGHT, WIDTH))
            for number, (_, (x1, y1, x2, y2)) in enumerate(TRUTH[stem], start=1):
                numbers[y1:y2, x1:x2] = number
            mask(root / "SegmentationObject" / f"{stem}.png", numbers, palette=True)
            mask(root / "SegmentationClass" / f"{stem}.png", semantic(stem), palette=True)
    text(root / "classes.txt", "cat\ndog\n")
    return root


def labelme(root: Path) -> Path:
    for which, stems in SPLITS.items():
        for stem in stems:
            image(root / which / f"{stem}.png", stem)
            shapes = [
                {"label": label, "points": np.array(ring(box)).reshape(-1, 2).tolist()}
                for label, box in TRUTH[stem]
            ]
            content = {"shapes": shapes, "imagePath": f"{stem}.png", "imageData": "AAAA"}
            text(root / which / f"{stem}.json", content)
    return root


def mask_pairs(root: Path) -> Path:
    for which, stems in SPLITS.items():
        for stem in stems:
            image(root / "images" / which / f"{stem}.png", stem)
            mask(root / "masks" / which / f"{stem}.png", semantic(stem), palette=stem == "a")
    text(root / "classes.txt", "background\ncat\ndog\n")
    return root


def roboflow_masks(root: Path) -> Path:
    for which, stems in SPLITS.items():
        folder = root / {"val": "valid"}.get(which, which)
        for stem in stems:
            image(folder / f"{stem}.png", stem)
            mask(folder / f"{stem}_mask.png", semantic(stem))
        text(folder / "_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    return root


def beside(root: Path) -> Path:
    for which, stems in SPLITS.items():
        for stem in stems:
            image(root / which / f"{stem}.png", stem)
            mask(root / f"{which}annot" / f"{stem}.png", semantic(stem))
    text(root / "classes.txt", "background\ncat\ndog\n")
    return root


def ade20k(root: Path) -> Path:
    for which, stems in SPLITS.items():
        name = {"train": "training", "val": "validation"}[which]
        for stem in stems:
            image(root / "images" / name / f"{stem}.png", stem)
            mask(root / "annotations" / name / f"{stem}.png", semantic(stem))
    text(root / "objectInfo150.txt", "Idx\tRatio\tName\n1\t0.1\tcat, kitten\n2\t0.2\tdog\n")
    return root


def cityscapes(root: Path, ending: str = "labelIds") -> Path:
    values = {"labelIds": (4, 26, 11), "labelTrainIds": (255, 13, 2)}[ending]
    for which, stems in SPLITS.items():
        for stem in stems:
            image(root / "leftImg8bit" / which / "ulm" / f"{stem}_0_leftImg8bit.png", stem)
            named = root / "gtFine" / which / "ulm" / f"{stem}_0_gtFine_{ending}.png"
            mask(named, np.array(values)[semantic(stem)])
    return root
