#!/usr/bin/env bash
# Trains Mirai with the published settings: the preset `paper` of the plugin mirai.
set -euo pipefail

if (($# < 3)); then
    cat >&2 <<'USAGE'
Usage: train_mirai.sh TABLE IMAGES OUT [OPTION...]

Trains Mirai with the published settings.

  TABLE   the cohort's table (CSV, EMBED or CSAW-CC layout)
  IMAGES  the folder of its 16-bit PNG images
  OUT     the run directory to write
  OPTION  anything that `medtrain run` takes; the last value of a key wins

Pretrained parts come from the environment, or as options:

  MIRAI_ENCODER  a Mirai snapshot, state dict or safetensors; 'none' trains the encoder from scratch
                 (--set mirai.encoder_weights=FILE)
USAGE
    exit 2
fi

table=$1 images=$2 out=$3
shift 3
exec medtrain run --plugin mirai --preset paper --data "$table" --images "$images" --out "$out" \
    ${MIRAI_ENCODER:+--set "mirai.encoder_weights=$MIRAI_ENCODER"} \
    "$@"
