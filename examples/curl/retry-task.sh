#!/bin/sh
# Try a task again at once.
set -eu
usage() {
    echo "usage: ${0##*/} TASK_ID" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -eq 1 ] || usage
id=$(number "$1")
post /api/webhooks/tasks/retry "{\"id\":$id}"
