#!/bin/sh
# Make a short-lived token of a tenant's, for a page that shows the tenant its own webhooks.
set -eu
usage() {
    echo "usage: ${0##*/} [-s SCOPE] [-d SECONDS] TENANT_ID" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

scope='' seconds=''
while getopts s:d: option; do
    case $option in
        s) scope=$(quoted "$OPTARG") ;;
        d) seconds=$(number "$OPTARG") ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || usage
tenant_id=$(number "$1")
more="${scope:+,\"scope\":$scope}${seconds:+,\"ttl_seconds\":$seconds}"
post /api/webhooks/tenants/portal-token "{\"tenant_id\":$tenant_id$more}"
