#!/bin/sh
# List a tenant's endpoints.
set -eu
usage() {
    echo "usage: ${0##*/} TENANT_ID" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -eq 1 ] || usage
tenant_id=$(number "$1")
request GET "/api/webhooks?tenant_id=$tenant_id"
