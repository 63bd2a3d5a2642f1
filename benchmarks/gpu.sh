#!/usr/bin/env bash
# What there is to know of one GPU, in under eight minutes; nanoGPT is measured beside it where a
# checkout is named:
#   bash benchmarks/gpu.sh tinyshakespeare.txt [NANOGPT]
set -euo pipefail
text=$(realpath "$1")
nanogpt=${2:+--nanogpt $(realpath "$2")}
here=$(realpath "$(dirname "$0")")
root=$(dirname "$here")
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# a folder for runs, downloads and compiled code: everything begins cold
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/cache
cd "$work"

run() {
    printf '\n+ %s\n' "$*"
    "$@"
}

run python3 -m myllm benchmark --size 124m --preset gpt2 --optimizer adamw --batch-size 16 --iterations 10
# the words of the options are plain, so splitting them is all the shell has to do
# shellcheck disable=SC2086
run python3 "$here/training_speed.py" "$text" $nanogpt --recipe 124m --device cuda --rounds 1 --steps 40
# shellcheck disable=SC2086
run python3 "$here/training_speed.py" "$text" $nanogpt --recipe gpu --device cuda --rounds 1 --steps 60
run python3 -m myllm train "$text" --max-steps 300
run python3 -m myllm generate --max-new-tokens 200 --sample-seed 1
