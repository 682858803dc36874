#!/bin/sh
# Delete an endpoint and cancel its open tasks.
set -eu
usage() {
    echo "usage: ${0##*/} ENDPOINT_ID" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -eq 1 ] || usage
id=$(number "$1")
post /api/webhooks/delete "{\"id\":$id}"
