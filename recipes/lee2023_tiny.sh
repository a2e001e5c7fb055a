#!/bin/sh
# The paper's whole story on the tiny world, up to 45 minutes on 2 cores.
# usage: sh recipes/lee2023_tiny.sh [STUDY]
# The same commands as the demo at several times its size; docs/benchmarks.md has the results.
set -eu
STUDY=${1:-recipe-study}

[ -e "$STUDY/study.json" ] || sayso new "$STUDY"

# 360 prompts to rate; the paper's 120 test prompts, half about unseen objects (Sec. 4.2).
sayso prompts "$STUDY" --train 360 --test 120 --fidelity 512

# 8,640 images, all rated once (the paper: 27,528 images, one label each).
sayso generate "$STUDY" --prompts train --per-prompt 24
sayso rate "$STUDY" --simulated --prompts train

sayso fit "$STUDY" --joining interaction --dropout 0.7 --weight-decay 0.3 --hidden-width 256
sayso align "$STUDY" --max-steps 4000 --draw reward --weight product --even --prompt-dropout 0.2 \
  --pretraining-draw reward --pretraining-images 32768 --pretraining-fraction 0.5 --pretraining-weight 2

# Best 4 of 16 against random 4, tuned against both, 9 raters a set (Sec. 4.2, 4.4).
sayso generate "$STUDY" --prompts test --per-prompt 16
sayso generate "$STUDY" --prompts test --per-prompt 4 --best-of 16 --reward runs/fit-clip_head
sayso generate "$STUDY" --prompts test --per-prompt 4 --model runs/align-rwr
sayso generate "$STUDY" --prompts fidelity --per-prompt 1
sayso generate "$STUDY" --prompts fidelity --per-prompt 1 --model runs/align-rwr
for PAIR in "base runs/align-rwr" "base base@best-of-16" "base@best-of-16 runs/align-rwr"; do
  sayso rate "$STUDY" --simulated --task compare --prompts test --set-size 4 --raters 9 --overlap 9 \
    --left "${PAIR% *}" --right "${PAIR#* }"
done

sayso evaluate "$STUDY" --model runs/align-rwr
sayso report "$STUDY"
