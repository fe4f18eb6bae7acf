"""The formats that people have their annotations in, one file each: how it is found, and how it is read into COCO's terms."""
