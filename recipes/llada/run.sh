#!/usr/bin/env bash
# LLaDA on your own data and weights: stages and options are those of recipes/ttt/run.sh (see its --help).
#
#   ./recipes/llada/run.sh --conf pretrain --model /models/Llama-3.2-1B --train text.jsonl --exp exp/llada
#   ./recipes/llada/run.sh --conf sft --model /models/Llama-3.2-1B --train chats.jsonl --exp exp/sft train.init_from=exp/llada/checkpoints/step-00100000
#   ./recipes/llada/run.sh --conf tts --model /models/Llama-3.2-3B --train speech.jsonl --exp exp/tts --gpus 4
#   ./recipes/llada/run.sh --conf mixed ... data.text=chats.jsonl data.ratio=0.5

RECIPE=recipes/llada exec "$(dirname "$0")/../ttt/run.sh" "$@"
