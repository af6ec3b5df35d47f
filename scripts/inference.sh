#!/usr/bin/env bash
# Measure a trained model on its test data:
#   bash scripts/inference.sh -d cpu|0|0,1 -p RUN [tester.use_best=False] [--split val]
# RUN is the run's folder, or a file in it. Everything else goes to `flambeau evaluate` as it is, and its exit status
# comes back.
set -euo pipefail

fail() { echo "error: $1; usage: $0 -d cpu|0|0,1 -p RUN" >&2; exit 2; }

devices=auto run='' rest=(--split test)
while (($#)); do
    case $1 in
        -d | -p) (($# > 1)) || fail "$1 needs a value" ;;&
        -d) devices=$2; shift 2 ;;
        -p) run=$2; shift 2 ;;
        tester.train_cfg_path=*) run=${1#*=}; shift ;;
        tester.use_best=[Ff]alse) rest+=(--checkpoint last); shift ;;
        tester.use_best=[Tt]rue) rest+=(--checkpoint best); shift ;;
        *) rest+=("$1"); shift ;;
    esac
done
[ "$run" ] || fail "which run?"
[ ! -f "$run" ] || run=$(dirname -- "$run")
exec "${PYTHON:-python}" -m flambeau evaluate "$run" -d "$devices" "${rest[@]}"
