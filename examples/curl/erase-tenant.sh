#!/bin/sh
# Delete all that is known of a tenant, for good; list-erasures.sh shows how far that is.
set -eu
usage() {
    echo "usage: ${0##*/} TENANT_ID" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -eq 1 ] || usage
tenant_id=$(number "$1")
post /api/webhooks/tenants/erase "{\"tenant_id\":$tenant_id}"
