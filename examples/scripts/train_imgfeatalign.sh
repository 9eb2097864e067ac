#!/usr/bin/env bash
# Trains ImgFeatAlign with the published settings: the preset `paper` of the plugin imgfeatalign.
set -euo pipefail

if (($# < 3)); then
    cat >&2 <<'USAGE'
Usage: train_imgfeatalign.sh TABLE IMAGES OUT [OPTION...]

Trains ImgFeatAlign with the published settings.

  TABLE   the cohort's table (CSV, EMBED or CSAW-CC layout)
  IMAGES  the folder of its 16-bit PNG images
  OUT     the run directory to write
  OPTION  anything that `medtrain run` takes; the last value of a key wins

Pretrained parts come from the environment, or as options:

  MIRAI_ENCODER  a Mirai snapshot, state dict or safetensors; 'none' trains the encoder from scratch
                 (--set imgfeatalign.encoder_weights=FILE)
  REGISTRATION   a trained MammoRegNet, a file or a run; 'none' leaves the prior exam unaligned
                 (--set imgfeatalign.registration=FILE)
USAGE
    exit 2
fi

table=$1 images=$2 out=$3
shift 3
exec medtrain run --plugin imgfeatalign --preset paper --data "$table" --images "$images" --out "$out" \
    ${MIRAI_ENCODER:+--set "imgfeatalign.encoder_weights=$MIRAI_ENCODER"} \
    ${REGISTRATION:+--set "imgfeatalign.registration=$REGISTRATION"} \
    "$@"
