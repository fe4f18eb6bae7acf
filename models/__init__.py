"""Detectors with query denoising; torch, torchvision and scipy only. Where one looks for what:

| what | where |
|---|---|
| what goes in and comes out: `Images`, `Target`, `Output` | structures.py |
| the method: noise (Sec. 4.3), layout of queries and mask (4.4), queries (4.1, 4.5) | denoising/ |
| the detectors, one file each, and the table of their names | hosts/ |
| what they are built of | backbone.py, transformer.py, conditional.py, deformable.py, neck.py, heads.py, position.py |
| two stages: where the encoder lets the decoder start | proposals.py |
| what Anchor DETR adds; SAM-DETR and SMCA | row_column.py; aligner.py, modulated.py, gaussian.py |
| classes: logits, label embedding, classes by name (5.7.2) | heads.py, labels.py |
| what they are taught by | matcher.py, criterion.py, boxes.py |
| the deformable-attention operator: building and choosing it | native.py, cache.py; its sources are csrc/ |

A file imports rows above its own; a host never imports a host (tests/test_imports.py). docs/add-a-host.md adds one;
docs/use-as-library.md gives denoising to a detector that is none of them.
"""
