#!/usr/bin/env bash
# Train on several machines; the same on each, with its own devices and number:
#   bash scripts/multi_machine_train.sh -d 0,1 -a ADDR -p PORT -nn NODES -n RANK -c NAME [key=value ...]
# -a, -p: address of machine 0, and a port that is free there; -nn: how many machines; -n: the number of this one.
# Everything else goes to `flambeau train` as it is, and its exit status comes back.
set -euo pipefail

fail() { echo "error: $1; usage: $0 -d 0,1 -a ADDR -p PORT -nn NODES -n RANK -c NAME [key=value ...]" >&2; exit 2; }

devices=auto address='' port='' nodes='' rank='' config='' rest=()
while (($#)); do
    case $1 in
        -d | -a | -p | -nn | -n | -c) (($# > 1)) || fail "$1 needs a value" ;;&
        -d) devices=$2; shift 2 ;;
        -a) address=$2; shift 2 ;;
        -p) port=$2; shift 2 ;;
        -nn) nodes=$2; shift 2 ;;
        -n) rank=$2; shift 2 ;;
        -c) config=$2; shift 2 ;;
        *) rest+=("$1"); shift ;;
    esac
done
[ "$config" ] || fail "which configuration?"
[ "$address" ] && [ "$port" ] && [ "$nodes" ] && [ "$rank" ] || fail "-a, -p, -nn and -n are all needed"
exec "${PYTHON:-python}" -m flambeau train "$config" -d "$devices" \
    --nodes "$nodes" --node-rank "$rank" --master "$address:$port" ${rest[@]+"${rest[@]}"}
