#!/usr/bin/env bash
# faster-coco-eval 1.8.0: image ids 2^53 and 2^53 + 1, which COCO's format allows, are one image to it, as they are one double.
#
# Each of two images has an object, and a detection where the other image has its object: nothing is found, AP is 0, and
# pycocotools 2.0.11 says so with any ids. With these ids faster-coco-eval says 1, without a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faster-coco-eval==1.8.0 pycocotools==2.0.11 numpy==2.4.6

cat > "$folder/count.py" <<'PYTHON'
import contextlib, io, json, sys
import faster_coco_eval, pycocotools.coco, pycocotools.cocoeval

LEFT, RIGHT = [10, 10, 20, 20], [60, 10, 20, 20]


def ap(coco, evaluation, first):
    ids = (first, first + 1)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in ids]
    objects = [
        {"id": number, "image_id": image_id, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
        for number, image_id, box in zip((1, 2), ids, (LEFT, RIGHT))
    ]
    detections = [
        {"image_id": image_id, "category_id": 1, "bbox": box, "score": 0.9} for image_id, box in zip(ids, (RIGHT, LEFT))
    ]
    with open(sys.argv[1], "w") as file:
        json.dump({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}, file)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco(sys.argv[1])
        run = evaluation(truth, truth.loadRes(detections), "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    return float(run.stats[0])


for first in (1, 2**53):
    print(f"first id {first}: pycocotools {ap(pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval, first):.1f},", end=" ")
    print(f"faster-coco-eval {ap(faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, first):.1f}")
PYTHON

"$folder/venv/bin/python" "$folder/count.py" "$folder/truth.json" | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN'
first id 1: pycocotools 0.0, faster-coco-eval 0.0
first id 9007199254740992: pycocotools 0.0, faster-coco-eval 1.0
SEEN
