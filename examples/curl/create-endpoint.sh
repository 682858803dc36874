#!/bin/sh
# Add an endpoint for a tenant. It is active at once and gets all of the tenant's events.
set -eu
usage() {
    echo "usage: ${0##*/} TENANT_ID URL      ENDPOINT_SECRET: signs its deliveries; made up if not set" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -eq 2 ] || usage
tenant_id=$(number "$1")
url=$(quoted "$2")
secret=
[ -z "${ENDPOINT_SECRET:-}" ] || secret=",\"secret\":$(quoted "$ENDPOINT_SECRET")"
post /api/webhooks "{\"tenant_id\":$tenant_id,\"url\":$url$secret}"
