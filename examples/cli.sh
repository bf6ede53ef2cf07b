#!/usr/bin/env bash
# Starts a run, prints its answer as it is written, and cancels the run on Ctrl-C. Needs bash, curl and jq.
#   examples/cli.sh "Where is order 48291?"      (RUNTAIL_URL: another server; RUNTAIL_KEY: a key for it)
set -euo pipefail

message=${1:?say what the customer wrote}
url=${RUNTAIL_URL:-http://127.0.0.1:8000}
key="cli-$(date +%s)-$$-$RANDOM" # names the run before it has an id, and makes its POST safe to repeat
cursor=0

ask() { curl --silent --show-error ${RUNTAIL_KEY:+-H "Authorization: Bearer $RUNTAIL_KEY"} "$@"; }
post() { ask --fail-with-body --retry 5 --retry-connrefused -H 'Content-Type: application/json' "$@"; }

cancel() {
    trap '' INT TERM
    post "$url/runs/cancel" -d "{\"idempotency_key\": \"$key\"}" | jq -r '"\nThe run is \(.status)."' >&2
    exit 130
}
trap cancel INT TERM

# One window: seq, type and text of each event, with the text's line breaks as \n; of an error its code and detail.
window() {
    ask --no-buffer -H 'Accept: application/x-ndjson' "$url/runs/$run/events?since_seq=$cursor" |
        jq --unbuffered -r '[.seq // .payload.seq // 0, .code // .type,
            .payload.text // .payload.state.answer.text // .detail // ""] | @tsv'
}

body=$(jq -n --arg message "$message" '{agent: "support", input: {message: $message}}')
started=$(post "$url/runs" -H "Idempotency-Key: $key" -d "$body") || { jq -r .detail <<< "$started" >&2; exit 1; }
run=$(jq -r '.run_id // empty' <<< "$started")
echo "Following $run" >&2

until [[ ${ended:-} ]]; do
    while IFS=$'\t' read -r seq type text; do
        ((seq == 0)) || cursor=$seq
        case $type in
            message.delta) printf '%b' "$text" ;;
            stream.snapshot) printf '\n%b' "$text" ;; # the whole answer up to here
            run.step) printf '\n(again)\n' ;;         # another attempt goes on; an open message is written anew
            run.completed | run.failed | run.cancelled) ended=$type ;;
            too_many_streams | store_unavailable | *.*) ;; # an error that passes; other events
            *) echo "$text" >&2 && exit 1 ;;
        esac
    done < <(window)
    [[ ${ended:-} ]] || sleep 0.5 # the window ended, not the run: come back with the cursor
done
echo
[[ $ended == run.completed ]] || { echo "$ended" >&2; exit 1; }
