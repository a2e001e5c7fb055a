#!/bin/sh
# The paper, step by step: Lee et al. 2023, arXiv 2302.12192, on Stable Diffusion v1.5.
# usage: sh recipes/lee2023.sh STUDY BASE_MODEL CLIP_MODEL PRETRAINING_FOLDER
# Needs GPUs and people. Each flag stands with the section it comes from; "not given" is our choice.
set -eu
STUDY=$1 BASE=$2 CLIP=$3 PRETRAINING=$4

# Stable Diffusion v1.5 at 512 px; CLIP ViT-L/14 (Sec. 4.1). Sampler: not given.
sayso new "$STUDY" --base-model "$BASE" --clip-model "$CLIP" --pretraining "$PRETRAINING" \
  --image-size-px 512 --num-inference-steps 30 --guidance-scale 7.5

# 2,774 prompts of four groups, 20 objects to train on and 5 held out (Sec. 4.1; which five: not given).
sayso prompts "$STUDY" --set lee2023

# 27,528 images, 60 or 6 a prompt by group; --per-prompt 0 takes the set's own numbers (App. B).
sayso generate "$STUDY" --prompts train --per-prompt 0

# People mark good / bad / skip. This version takes the marks through Python, see docs/tutorial.md.
sayso rate "$STUDY"

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

sayso evaluate "$STUDY" --model runs/align-rwr --judge none
sayso report "$STUDY"
