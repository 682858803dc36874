#!/bin/sh
# List the tenants that have, or had, an endpoint or limits of their own; or look at one.
set -eu
usage() {
    echo "usage: ${0##*/} [-c CURSOR] [TENANT_ID]" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

cursor=''
while getopts c: option; do
    case $option in
        c) cursor=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -le 1 ] || usage
if [ $# -eq 1 ]; then
    tenant_id=$(number "$1")
    request GET "/api/webhooks/tenants/detail?tenant_id=$tenant_id"
else
    request GET /api/webhooks/tenants --get ${cursor:+--data-urlencode "cursor=$cursor"}
fi
