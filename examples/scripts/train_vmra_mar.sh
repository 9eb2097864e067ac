#!/usr/bin/env bash
# Trains VMRA-MaR with the published settings: the preset `paper` of the plugin vmra_mar.
set -euo pipefail

if (($# < 3)); then
    cat >&2 <<'USAGE'
Usage: train_vmra_mar.sh TABLE IMAGES OUT [OPTION...]

Trains VMRA-MaR with the published settings.

  TABLE   the cohort's table (CSV, EMBED or CSAW-CC layout)
  IMAGES  the folder of its 16-bit PNG images
  OUT     the run directory to write
  OPTION  anything that `medtrain run` takes; the last value of a key wins

Pretrained parts come from the environment, or as options:

  MIRAI_ENCODER  a Mirai snapshot, state dict or safetensors; 'none' trains the encoder from scratch
                 (--set vmra_mar.encoder_weights=FILE)
USAGE
    exit 2
fi

table=$1 images=$2 out=$3
shift 3
exec medtrain run --plugin vmra_mar --preset paper --data "$table" --images "$images" --out "$out" \
    ${MIRAI_ENCODER:+--set "vmra_mar.encoder_weights=$MIRAI_ENCODER"} \
    "$@"
