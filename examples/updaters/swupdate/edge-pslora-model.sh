#!/bin/sh
# SWUpdate shellscript: applies the model that sw-description put at DATA.
#
#     edge-pslora-model.sh preinst|postinst|failure|postfailure DATA
#
# `failure` comes when anything of the update failed, after postinst or before: then the model from
# before this update serves again, so that system and model go back together. What it was is noted in
# /run: after a power cut SWUpdate starts again at preinst, and /run is empty as it should be.
set -eu

# shellcheck source-path=SCRIPTDIR source=../common.sh
. "${EDGE_PSLORA_LIB:-/usr/lib/edge-pslora}/common.sh"

note=${EDGE_PSLORA_RUN:-/run}/edge-pslora.swupdate

case "${1:-}" in
    preinst)
        rm -f "$note" # of an update before this one
        ;;
    postinst)
        install_from "$note" "$2"
        ;;
    failure | postfailure)
        go_back "$note"
        rm -f "$note"
        ;;
esac
exit 0
