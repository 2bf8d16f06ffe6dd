# shellcheck shell=sh
# /usr/lib/edge-pslora/common.sh: what the update module and the hooks share. POSIX sh, to be sourced.
#
# Every function may be called again after a power cut at any point: `edge-pslora apply` is resumable,
# and what is remembered between two calls is one number in one file, replaced in one step.

# shellcheck source-path=SCRIPTDIR source=update.conf
. "${EDGE_PSLORA_CONF:-/etc/edge-pslora/update.conf}"

LOCKED=5 # exit code of edge-pslora: another process writes to the workspace

say() {
    printf 'edge-pslora: %s\n' "$*" >&2
}

# Runs edge-pslora; waits while somebody else holds the lock, for that passes by itself and an
# updater would count it as a failed update.
edge_pslora() {
    waited=0
    while :; do
        code=0
        edge-pslora "$@" || code=$?
        if [ "$code" -ne "$LOCKED" ] || [ "$waited" -ge "${EDGE_PSLORA_LOCK_WAIT:-1800}" ]; then
            return "$code"
        fi
        sleep "${EDGE_PSLORA_LOCK_STEP:-10}"
        waited=$((waited + ${EDGE_PSLORA_LOCK_STEP:-10}))
    done
}

# The number of the generation that serves, or "none". `current` is replaced in one step, so that
# reading it needs no lock and never finds half of a number.
serving() {
    number=
    if [ -f "$EDGE_PSLORA_WORKSPACE/current" ]; then
        read -r number _ <"$EDGE_PSLORA_WORKSPACE/current"
    fi
    number=${number#"${number%%[!0]*}"}
    printf '%s\n' "${number:-none}"
}

# Takes the signed update at $1 through its trial. 0: it serves (or it served already).
apply_from() {
    edge_pslora apply "$EDGE_PSLORA_WORKSPACE" --from "$1" --root "$EDGE_PSLORA_ROOT" \
        --device-class "$EDGE_PSLORA_CLASS" --health-check "$EDGE_PSLORA_HEALTH_CHECK"
}

# Checks the signed update at $1 (signatures, dates, digests, device) and changes nothing.
verify_from() {
    if [ -d "$EDGE_PSLORA_WORKSPACE/updates/trusted" ]; then
        edge_pslora verify "$1" --workspace "$EDGE_PSLORA_WORKSPACE"
    else
        edge_pslora verify "$1" --root "$EDGE_PSLORA_ROOT"
    fi
}

# Notes the serving generation in the file $1, unless an attempt before a power cut did so: what
# served when the update began is what there is to go back to. An empty note, which a power cut may
# leave, was never finished: nothing was applied after it.
remember_serving() {
    if [ ! -s "$1" ]; then
        serving >"$1.new"
        mv "$1.new" "$1"
        sync
    fi
}

# Makes the generation noted in the file $1 serve again. 0 as well when nothing has to be done.
go_back() {
    if [ ! -s "$1" ]; then
        return 0 # the update never began
    fi
    read -r before <"$1"
    if [ "$(serving)" = "$before" ]; then
        return 0
    fi
    if [ "$before" = none ]; then
        say "nothing served before this update: there is nothing to go back to"
        return 1
    fi
    edge_pslora rollback "$EDGE_PSLORA_WORKSPACE" --to "$before"
}
