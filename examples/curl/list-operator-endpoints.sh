#!/bin/sh
# List the operator's endpoints.
set -eu
usage() {
    echo "usage: ${0##*/}" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -eq 0 ] || usage
request GET /api/webhooks/operator/endpoints
