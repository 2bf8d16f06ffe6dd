# shellcheck shell=sh
# /usr/lib/edge-pslora/common.sh: what the update module and the hooks share. POSIX sh, to be sourced.
#
# Every function may be called again after a power cut at any point: `edge-pslora apply` is resumable,
# and what is remembered between two calls is one number in one file, replaced in one step.

# shellcheck source-path=SCRIPTDIR source=update.conf
. "${EDGE_PSLORA_CONF:-/etc/edge-pslora/update.conf}"

# exit codes of edge-pslora: the old model serves; another process writes to the workspace
REFUSED=3 LOCKED=5

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

# apply with this device's health check and the options given; without --from: what is pending.
checked_apply() {
    edge_pslora apply "$EDGE_PSLORA_WORKSPACE" --health-check "$EDGE_PSLORA_HEALTH_CHECK" \
        --health-timeout "$EDGE_PSLORA_HEALTH_TIMEOUT" \
        --health-interval "$EDGE_PSLORA_HEALTH_INTERVAL" "$@"
}

# Takes the signed update at $1 through its trial, and prints what came of it, one JSON object.
# 0: it serves, now or already. An update that was taken before is no reason for apply to do anything,
# also where somebody went back from it since; an updater must not report that as a success.
apply_from() {
    code=0
    answer=$(checked_apply --from "$1" --root "$EDGE_PSLORA_ROOT" \
        --device-class "$EDGE_PSLORA_CLASS" --json) || code=$?
    printf '%s\n' "$answer"
    case "$code $answer" in
        0*'"serves": false'*)
            say "this update was taken before, and the device went back from it: give it a new one"
            code=$REFUSED
            ;;
    esac
    return "$code"
}

# Ends the trial that is open, if one is, whichever way it goes.
settle() {
    code=0
    if [ -e "$EDGE_PSLORA_WORKSPACE/workspace.json" ]; then
        checked_apply || code=$?
    fi
    [ "$code" -ne "$REFUSED" ] || code=0
    return "$code"
}

# Checks the signed update at $1 (signatures, dates, digests, device) and changes nothing.
verify_from() {
    edge_pslora verify "$1" --workspace "$EDGE_PSLORA_WORKSPACE" --root "$EDGE_PSLORA_ROOT"
}

# As apply_from, with what served before noted in the file $1 for go_back. What an attempt before a
# power cut has noted stays: that is what there is to go back to. An empty note, which a power cut may
# leave, was never finished: nothing was applied after it.
install_from() {
    if [ ! -s "$1" ]; then
        settle || return $? # a model that is on trial itself is nothing to go back to
        serving >"$1.new"
        mv "$1.new" "$1"
        sync
    fi
    code=0
    apply_from "$2" || code=$?
    case "$code" in
        # refused by apply itself, which went back already or never began: there is nothing left to
        # undo, and what a session of `adapt` promotes from now on is not this update's to undo
        2 | "$REFUSED" | 4 | "$LOCKED") rm -f "$1" ;;
    esac
    return "$code"
}

# Makes the generation noted in the file $1 serve again. Asked for even where it serves already: an
# update that was cut before its model began to serve would go on at the next start of the device.
go_back() {
    if [ ! -s "$1" ]; then
        return 0 # the update never began
    fi
    read -r before <"$1"
    if [ "$before" != none ]; then
        edge_pslora rollback "$EDGE_PSLORA_WORKSPACE" --to "$before"
    else
        settle # nothing served before: what is left is its trial, which may go either way
        if [ "$(serving)" != none ]; then
            say "the first model of this device passed its trial and stays: there is no other"
            return 1
        fi
    fi
}
