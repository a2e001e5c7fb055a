#!/bin/sh
# The paper, step by step: Lee et al. 2023, arXiv 2302.12192, on Stable Diffusion v1.5.
# Needs GPUs and people. Each flag is given with the section it comes from; "not given" is our choice.
# usage, in this order:
#   sh recipes/lee2023.sh draw STUDY BASE_MODEL CLIP_MODEL PRETRAINING_FOLDER
#   sh recipes/lee2023.sh rate STUDY                              people; Ctrl+C when all is rated
#   sh recipes/lee2023.sh learn STUDY
#   sh recipes/lee2023.sh compare STUDY base runs/align-rwr       people; likewise for
#   sh recipes/lee2023.sh compare STUDY base base@best-of-16      each pair of models
#   sh recipes/lee2023.sh compare STUDY base@best-of-16 runs/align-rwr
#   sh recipes/lee2023.sh measure STUDY
# Run a part again to resume it after a stop. Memory and hours of it all, without weights, images or
# network, for one H200 and four cards of 24 GB or for the devices that you name:
#   sh recipes/lee2023.sh --dry-run [DEVICE ...]
set -eu
MODELS="stable-diffusion-v1-5/stable-diffusion-v1-5 openai/clip-vit-large-patch14"

planned() {
  # Of a command that only needs the study its plan; of the others their words.
  case "$*" in
    *runs/* | *fidelity*) echo "== sayso $*" ;; # whose prompts are captions of pre-training images
    new* | prompts*) command sayso "$@" ;;
    generate* | align*)
      # several cards of 24 GB hold the network's gradients and moments only together
      case "$1 $DEVICE" in align*[0-9]x*) set -- "$@" --sharding full ;; esac
      echo "== sayso $* --forecast-for $DEVICE"
      command sayso "$@" --forecast-for "$DEVICE" --dry-run
      ;;
    *) echo "== sayso $*" ;;
  esac
}

dry_run() {
  [ $# -gt 0 ] || set -- h200 4xrtx4090
  FOLDER=$(mktemp -d) STUDY=$FOLDER/study
  trap 'rm -r "$FOLDER"' EXIT
  sayso() { planned "$@"; }
  for DEVICE; do
    # shellcheck disable=SC2086
    draw $MODELS ""
    rate
    learn
    compare base runs/align-rwr
    measure
  done
}

draw() {
  # Stable Diffusion v1.5 at 512 px; CLIP ViT-L/14 (Sec. 4.1). Sampler: not given.
  [ -e "$STUDY/study.json" ] || sayso new "$STUDY" --base-model "$1" --clip-model "$2" \
    --pretraining "$3" --image-size 512 --num-inference-steps 30 --guidance-scale 7.5

  # 2,774 prompts of four groups, 20 objects to train on and 5 held out (Sec. 4.1; which: not given).
  sayso prompts "$STUDY" --set lee2023

  # 27,528 images, 60 or 6 a prompt by group; --per-prompt 0 takes the set's own numbers (App. B).
  sayso generate "$STUDY" --prompts train --per-prompt 0
}

rate() {
  # Good, bad or skip; one rating per image, three images per page. To share the work, add people
  # first (see docs/rating.md) and listen on --host 0.0.0.0.
  sayso rate "$STUDY" --prompts train --images-per-page 3 --overlap 1
}

learn() {
  # Two hidden layers of 1,024; squared error + 0.5 × prompt classification at T = 2 (Sec. 3.2, 4.1).
  # Learning rate, batch size, epochs, number of altered prompts: not given.
  sayso fit "$STUDY" --hidden-width 1024 --prompt-classification-weight 0.5 --temperature 2

  # Reward-weighted likelihood + beta × pre-training loss, 10,000 steps, batch 512 of which half is
  # pre-training images (Sec. 3.3, App. B). beta and the learning rate: not given.
  sayso align "$STUDY" --aligner rwr --max-steps 10000 --batch-size 512 --micro-batch-size 8 \
    --learning-rate 1e-5 --pretraining-fraction 0.5 --pretraining-weight 1.0 \
    --pretraining-images 625000 --checkpoint-every 500

  # 120 test prompts, 4 images each; best 4 of 16 by the reward (Sec. 4.2, 4.4).
  sayso generate "$STUDY" --prompts test --per-prompt 16
  sayso generate "$STUDY" --prompts test --per-prompt 4 --best-of 16 --reward runs/fit-clip_head
  sayso generate "$STUDY" --prompts test --per-prompt 4 --model runs/align-rwr
  sayso generate "$STUDY" --prompts fidelity --per-prompt 1
  sayso generate "$STUDY" --prompts fidelity --per-prompt 1 --model runs/align-rwr
}

compare() {
  # Two sets of 4, blind, 9 raters, which shows the prompt better and which is more natural (Sec. 4.2).
  sayso rate "$STUDY" --task compare --prompts test --set-size 4 --overlap 9 \
    --left "$1" --right "$2"
}

measure() {
  # What the raters say, how far they agree, fidelity, and all of it on one page.
  sayso evaluate "$STUDY" --model runs/align-rwr --judge people
  sayso agreement "$STUDY"
  sayso report "$STUDY"
}

if [ "${1:-}" = --dry-run ]; then
  shift
  dry_run "$@"
  exit
fi
PART=${1:?draw, rate, learn, compare or measure} STUDY=${2:?the folder of the study}
shift 2
case $PART in
  draw | rate | learn | compare | measure) "$PART" "$@" ;;
  *) echo "unknown part $PART: draw, rate, learn, compare or measure" >&2 && exit 2 ;;
esac
