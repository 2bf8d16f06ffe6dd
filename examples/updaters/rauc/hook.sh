#!/bin/sh
# RAUC bundle hook: a system update that brings a model along. See manifest.raucm and system.conf.
#
# RAUC runs it from the mounted bundle with the hook's name as its argument and RAUC_* variables.
set -eu

# shellcheck source-path=SCRIPTDIR source=../common.sh
. "${EDGE_PSLORA_LIB:-/usr/lib/edge-pslora}/common.sh"

REJECT=10 # from here on RAUC calls a bundle rejected, and shows the last line of stderr

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

case "${1:-}" in
    install-check)
        # this hook takes the place of RAUC's own check
        if [ "$RAUC_MF_COMPATIBLE" != "$RAUC_SYSTEM_COMPATIBLE" ]; then
            echo "made for '$RAUC_MF_COMPATIBLE', this is '$RAUC_SYSTEM_COMPATIBLE'" >&2
            exit "$REJECT"
        fi
        # a model that would be refused stops the installation before the first slot is written
        if ! verify_from "$here/model.tar"; then
            echo "the model in this bundle is not acceptable here" >&2
            exit "$REJECT"
        fi
        ;;
    slot-install)
        if [ "$RAUC_SLOT_CLASS" != model ]; then
            echo "this hook installs slots of class model, not $RAUC_SLOT_CLASS" >&2
            exit 1
        fi
        # a full path or a name in the bundle, as versions of RAUC differ
        case "$RAUC_IMAGE_NAME" in
            /*) apply_from "$RAUC_IMAGE_NAME" ;;
            *) apply_from "$here/$RAUC_IMAGE_NAME" ;;
        esac
        ;;
esac
exit 0
