#!/usr/bin/env bash
# Train a configuration on the devices that are listed, one process each:
#   bash scripts/train.sh -d cpu|0|0,1 -c NAME [key=value ...]
# Everything else goes to `flambeau train` as it is, and its exit status comes back.
set -euo pipefail

fail() { echo "error: $1; usage: $0 -d cpu|0|0,1 -c NAME [key=value ...]" >&2; exit 2; }

devices=auto config='' rest=()
while (($#)); do
    case $1 in
        -d | -c) (($# > 1)) || fail "$1 needs a value" ;;&
        -d) devices=$2; shift 2 ;;
        -c) config=$2; shift 2 ;;
        *) rest+=("$1"); shift ;;
    esac
done
[ "$config" ] || fail "which configuration?"
exec "${PYTHON:-python}" -m flambeau train "$config" -d "$devices" ${rest[@]+"${rest[@]}"}
