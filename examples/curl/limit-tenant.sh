#!/bin/sh
# Give a tenant limits of its own; null takes one back. They hold at once.
set -eu
usage() {
    echo "usage: ${0##*/} TENANT_ID LIMIT=NUMBER|null...      such as: 7 events_per_second=5000 endpoints=null" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -ge 2 ] || usage
tenant_id=$(number "$1")
shift
limits=''
for each; do
    case $each in *=*) ;; *) usage ;; esac
    name=$(quoted "${each%%=*}")
    value=${each#*=}
    [ "$value" = null ] || value=$(number "$value")
    limits="$limits,$name:$value"
done
post /api/webhooks/tenants/limits "{\"tenant_id\":$tenant_id$limits}"
