#!/usr/bin/env bash
# Trains OA-BreaCR with the published settings: the preset `paper` of the plugin oa_breacr.
set -euo pipefail

if (($# < 3)); then
    cat >&2 <<'USAGE'
Usage: train_oa_breacr.sh TABLE IMAGES OUT [OPTION...]

Trains OA-BreaCR with the published settings.

  TABLE   the cohort's table (CSV, EMBED or CSAW-CC layout)
  IMAGES  the folder of its 16-bit PNG images
  OUT     the run directory to write
  OPTION  anything that `medtrain run` takes; the last value of a key wins

The encoder starts from ImageNet weights, which torchvision downloads once. Without a network:

  --set oa_breacr.encoder_weights=FILE   torchvision's file; 'none' trains the encoder from scratch
USAGE
    exit 2
fi

table=$1 images=$2 out=$3
shift 3
exec medtrain run --plugin oa_breacr --preset paper --data "$table" --images "$images" --out "$out" "$@"
