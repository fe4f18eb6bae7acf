#!/usr/bin/env bash
# Pillow 13.0.0: grey that is multiplied by its alpha, which TIFF allows and Pillow opens as mode La, cannot be converted to RGB.
#
# It raises, in whatever begins with Image.open(...).convert("RGB"), as readers of datasets do. By way of LA it works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3

cat > "$folder/convert.py" <<'PYTHON'
import sys
import numpy, tifffile
from PIL import Image

grey = numpy.full((4, 6, 2), 100, numpy.uint8)
tifffile.imwrite(sys.argv[1], grey, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"])
picture = Image.open(sys.argv[1])
print("opened as", picture.mode)
for modes in (["RGB"], ["LA", "RGB"]):
    made = picture
    try:
        for mode in modes:
            made = made.convert(mode)
        print("by", "then".join(f" {mode} " for mode in modes).strip(), "->", made.mode)
    except ValueError as error:
        print("by", *modes, "-> ValueError:", error)
PYTHON

"$folder/venv/bin/python" "$folder/convert.py" "$folder/grey.tif" | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN'
opened as La
by RGB -> ValueError: conversion from La to L not supported
by LA then RGB -> RGB
SEEN
