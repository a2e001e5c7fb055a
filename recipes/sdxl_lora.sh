#!/bin/sh
# Stable Diffusion XL with people in the loop, on one card of 24 GB: adapters from the pairs that their
# ratings give (dpo). Two rounds of people: they rate the base's images, then compare old and new blind.
# usage, in this order:
#   sh recipes/sdxl_lora.sh draw STUDY PROMPTS      PROMPTS: a text file with one prompt per line
#   sh recipes/sdxl_lora.sh rate STUDY              people; Ctrl+C when all is rated
#   sh recipes/sdxl_lora.sh learn STUDY
#   sh recipes/sdxl_lora.sh compare STUDY           people
#   sh recipes/sdxl_lora.sh measure STUDY
# Run a part again to resume it after a stop.
# Frozen weights are in bf16 throughout, so that what is trained is what generates.
set -eu
PART=${1:?draw, rate, learn, compare or measure} STUDY=${2:?the folder of the study}
BASE=${SAYSO_BASE:-stabilityai/stable-diffusion-xl-base-1.0}

draw() {
  [ -e "$STUDY/study.json" ] || sayso new "$STUDY" --base-model "$BASE" --image-size 1024 \
    --num-inference-steps 30 --guidance-scale 5
  sayso prompts "$STUDY" --file "${1:?a text file with one prompt per line}" --test 60
  sayso generate "$STUDY" --prompts train --per-prompt 8 --batch-size 2 --base-precision bf16
}

rate() {
  # Two raters per image, so that their agreement is known.
  sayso rate "$STUDY" --prompts train --images-per-page 4 --overlap 2
}

learn() {
  # Adapters in fp32; --dry-run says what that takes.
  sayso align "$STUDY" --aligner dpo --lora-rank 16 --base-precision bf16 --gradient-checkpointing \
    --max-steps 1000 --batch-size 32 --micro-batch-size 2 --learning-rate 1e-4
  sayso generate "$STUDY" --prompts test --per-prompt 4 --batch-size 2 --base-precision bf16
  sayso generate "$STUDY" --prompts test --per-prompt 4 --batch-size 2 --base-precision bf16 \
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
