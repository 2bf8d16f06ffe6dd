#!/bin/sh
# RAUC full custom handler: a RAUC bundle that holds a model and nothing else, and writes no slot.
#
#     manifest.raucm:  [handler]
#                      filename=handler.sh
#
# RAUC reads stdout: lines that begin with "<< " are its own, others go to its log.
set -eu

# shellcheck source-path=SCRIPTDIR source=../common.sh
. "${EDGE_PSLORA_LIB:-/usr/lib/edge-pslora}/common.sh"

code=0
apply_from "${RAUC_BUNDLE_MOUNT_POINT:-$RAUC_UPDATE_SOURCE}/model.tar" || code=$?
case "$code" in
    0) echo "<< handler applied" ;;
    3) echo "<< error the health check refused the model, the old one serves" ;;
    4) echo "<< error the model's bundle is not acceptable" ;;
    *) echo "<< error edge-pslora ended with exit code $code" ;;
esac
exit "$code"
