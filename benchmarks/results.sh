#!/bin/sh -eu
# Every study of docs/results.md, two trainings at once, each on one core; `make results` runs it. After an interruption the
# same command goes on. Run folders are kept in runs/results; tables, pictures and numbers go to docs/results.
# BCCD=FOLDER names that dataset in COCO's layout (docs/real-data.md); where it is not, its studies are left out.
# Settings are put on top of every training: `benchmarks/results.sh data.root=FOLDER`, with a few images made by
# `dndetr data shapes`, tries all of it in minutes, and leaves its numbers in docs/results.
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
runs=runs/results pages=docs/results bccd=${BCCD:-bccd}
study="--seeds 3 --jobs 2"
tiny="--preset dn-deform-tiny $study"
lite="--preset dn-deform-lite $study"
short="train.epochs=6 train.drop_epoch=1000 data.workers=0"
learned="host.anchors=random train.drop_epoch=1000 data.workers=0"
cells="data.vertical_flip=0.5 train.epochs=8 train.drop_epoch=6.8 data.workers=0"

# The parts of denoising, its groups, its noise, its speed (Tables 5 to 7, Fig. 7 and 8)
dndetr ablate components $tiny --out $runs/components $short "$@"
dndetr ablate groups $tiny --out $runs/groups $short "$@"
dndetr ablate noise $tiny --out $runs/noise train.epochs=3 data.workers=0 "$@"
dndetr ablate benchmarks/own-rates.yaml $study --out $runs/own-rates data.workers=0 "$@"
for what in is curves "anchors --images 1"; do
  dndetr analyze $what --ckpt $runs/groups/5-groups/seed-0 --ckpt $runs/groups/no-group/seed-0 --out $pages/matching
done

# Other detectors, whose anchors are learned, and real data (Tables 1 and 4)
dndetr ablate denoising --preset dn-dab-tiny $study --out $runs/dab $learned train.epochs=8 "$@"
dndetr ablate denoising $tiny --out $runs/dense $learned host.decoder=dense loss.cls=2 train.lr=1e-3 train.backbone_lr=1e-3 \
  train.epochs=12 "$@"
if [ -d "$bccd" ]; then
  dndetr ablate denoising $lite --out $runs/bccd $cells "$@" "data.root=$bccd"
fi

# Each detector that denoising plugs into (Table 3), small, for so many epochs at a rate that suits its baseline
[ -d $runs/small ] || dndetr data shapes --out $runs/small --size 64 --train 1000
small="data.root=$runs/small data.sizes=[64] data.eval_size=64 data.max_size=64 data.workers=0"
small="$small host.queries=25 host.hidden=64 host.ffn=128 train.batch_size=8 train.drop_epoch=1000 train.save_steps=0"
for each in "vanilla 30 5e-4" "conditional 8 1e-3" "anchor 10 2e-3" "group-dab 8 1e-3" "dino 6 1e-3" "sam 4 1e-3"; do
  set -- $each "$@"
  name=$1 epochs=$2 rate=$3
  shift 3
  dndetr ablate denoising --preset dn-$name-tiny $study --out $runs/$name $small \
    train.epochs=$epochs train.lr=$rate train.backbone_lr=$rate "$@"
done

# Known objects and known labels (Tables 9 and 10)
dndetr known-objects --split 0.7 $study --out $runs/known-objects-0.7 $short "$@"
dndetr known-objects --split 0.5 $study --out $runs/known-objects-0.5 $short "$@"
for seed in 0 1 2; do
  dndetr known-labels --ckpt $runs/components/box-label-mask/seed-$seed --epochs 10 --out $runs/known-labels-$seed \
    data.workers=0 "$@"
done

# What the paper leaves to future work (Sec. 5.7.2)
dndetr ablate benchmarks/progressive.yaml $study --out $runs/progressive $short "$@"
if [ -d "$bccd" ]; then
  dndetr ablate benchmarks/progressive.yaml $lite --out $runs/progressive-bccd $cells "$@" "data.root=$bccd"
fi
[ -f $runs/shapes.safetensors ] || dndetr labels embed --out $runs/shapes.safetensors --data shapes
dndetr ablate benchmarks/zero-shot.yaml $study --out $runs/zero-shot $short "$@"
python - $runs/shapes.safetensors $runs/exchanged.safetensors <<'END' # a control: each of the two held-out names as the other
import sys
from safetensors.torch import load_file, save_file
vectors = load_file(sys.argv[1])
vectors["cross"], vectors["ring"] = vectors["ring"], vectors["cross"]
save_file(vectors, sys.argv[2])
END
for seed in 0 1 2; do
  for knowing in $runs/progressive*/knowing; do
    for sure in 0.05 0.1 0.3; do
      dndetr eval --ckpt $knowing/seed-$seed --progressive 2 --sure $sure \
        --json $pages/$(basename ${knowing%/knowing})/seed-$seed-sure-$sure.json
    done
  done
  labels=$runs/known-labels-$seed/labels.json
  [ -f $labels ] || dndetr labels classify --ckpt $runs/components/box-label-mask/seed-$seed --out $labels
  for tuned in told control; do
    for likely in 0.5 0.1 0; do
      dndetr eval --ckpt $runs/known-labels-$seed/$tuned --labels-from $labels --likely $likely \
        --json $pages/known-labels-$seed/$tuned-likely-$likely.json
    done
  done
  held_out="dndetr eval --ckpt $runs/zero-shot/embeddings/seed-$seed task.classes=[cross,ring]"
  $held_out --json $pages/zero-shot/held-out-seed-$seed.json
  $held_out --embeddings $runs/exchanged.safetensors --json $pages/zero-shot/exchanged-seed-$seed.json
done

for page in $runs/*/*.md; do
  from=$(dirname $page) to=$pages/$(basename $(dirname $page))
  mkdir -p $to
  cp $page $to
  find $from -maxdepth 1 \( -name '*.csv' -o -name '*.png' \) -exec cp {} $to \;
done
