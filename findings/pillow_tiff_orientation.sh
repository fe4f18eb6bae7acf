#!/usr/bin/env bash
# Pillow 13.0.0 turns a TIFF by its EXIF orientation while loading it; a JPEG, PNG or WebP with the same EXIF stays as it is
# stored, until ImageOps.exif_transpose is asked.
#
# `size` of the open TIFF is that of the turned picture before a pixel is read, and its orientation is gone after loading. Who
# turns by hand what `getexif` said before loading turns a TIFF twice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0

cat > "$folder/turn.py" <<'PYTHON'
import io
from PIL import ExifTags, Image

for name in ("JPEG", "PNG", "WebP", "TIFF"):
    picture, exif, file = Image.new("RGB", (6, 4)), Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6  # a viewer turns it by 90 degrees
    picture.save(file, name, exif=exif)
    opened = Image.open(file)
    before = f"{opened.size}, orientation {opened.getexif().get(ExifTags.Base.Orientation)}"
    opened.load()
    print(f"{name}: {before}; loaded: {opened.size}, orientation {opened.getexif().get(ExifTags.Base.Orientation)}")
PYTHON

"$folder/venv/bin/python" "$folder/turn.py" | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN'
JPEG: (6, 4), orientation 6; loaded: (6, 4), orientation 6
PNG: (6, 4), orientation 6; loaded: (6, 4), orientation 6
WebP: (6, 4), orientation 6; loaded: (6, 4), orientation 6
TIFF: (4, 6), orientation 6; loaded: (4, 6), orientation None
SEEN
