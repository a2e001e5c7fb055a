#!/bin/sh
# FLUX.1 dev with people in the loop, on one card of 24 GB: adapters from the pairs that their ratings
# give (dpo). Two rounds of people: they rate the base's images, then compare old and new blind.
# Frozen weights are in 4 bits throughout, so that what is trained is what generates; this needs
# sayso[quantised].
# usage, in this order:
#   sh recipes/flux_lora.sh draw STUDY PROMPTS      PROMPTS: a text file with one prompt per line
#   sh recipes/flux_lora.sh rate STUDY              people; Ctrl+C when all is rated
#   sh recipes/flux_lora.sh learn STUDY
#   sh recipes/flux_lora.sh compare STUDY           people
#   sh recipes/flux_lora.sh measure STUDY
# Run a part again to resume it after a stop.
set -eu
PART=${1:?draw, rate, learn, compare or measure} STUDY=${2:?the folder of the study}
BASE=${SAYSO_BASE:-black-forest-labs/FLUX.1-dev}

draw() {
  [ -e "$STUDY/study.json" ] || sayso new "$STUDY" --base-model "$BASE" --image-size 512 \
    --num-inference-steps 28 --guidance-scale 3.5
  sayso prompts "$STUDY" --file "${1:?a text file with one prompt per line}" --test 60
  sayso generate "$STUDY" --prompts train --per-prompt 8 --batch-size 2 --base-precision nf4
}

rate() {
  # Two raters per image, so that their agreement is known.
  sayso rate "$STUDY" --prompts train --images-per-page 4 --overlap 2
}

learn() {
  # Adapters in fp32; --dry-run says what that takes.
  sayso align "$STUDY" --aligner dpo --lora-rank 16 --base-precision nf4 --gradient-checkpointing \
    --max-steps 1000 --batch-size 32 --micro-batch-size 2 --learning-rate 1e-4
  sayso generate "$STUDY" --prompts test --per-prompt 4 --batch-size 2 --base-precision nf4
  sayso generate "$STUDY" --prompts test --per-prompt 4 --batch-size 2 --base-precision nf4 \
    --model runs/align-dpo
}

compare() {
  sayso rate "$STUDY" --task compare --prompts test --set-size 4 --overlap 5 \
    --left base --right runs/align-dpo
}

measure() {
  sayso evaluate "$STUDY" --model runs/align-dpo --reward clip_score --judge people
  sayso agreement "$STUDY"
  sayso report "$STUDY"
}

shift 2
case $PART in
  draw | rate | learn | compare | measure) "$PART" "$@" ;;
  *) echo "unknown part $PART: draw, rate, learn, compare or measure" >&2 && exit 2 ;;
esac
