#!/bin/sh
# List a tenant's tasks, the newest 100 first; next_cursor in the answer is the CURSOR for the rest.
set -eu
usage() {
    echo "usage: ${0##*/} [-s STATUS] [-e ENDPOINT_ID] [-c CURSOR] TENANT_ID" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

status='' endpoint_id='' cursor=''
while getopts s:e:c: option; do
    case $option in
        s) status=$OPTARG ;;
        e) endpoint_id=$(number "$OPTARG") ;;
        c) cursor=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || usage
tenant_id=$(number "$1")
request GET /api/webhooks/tasks --get --data "tenant_id=$tenant_id" \
    ${status:+--data-urlencode "status=$status"} \
    ${endpoint_id:+--data "endpoint_id=$endpoint_id"} \
    ${cursor:+--data-urlencode "cursor=$cursor"}
