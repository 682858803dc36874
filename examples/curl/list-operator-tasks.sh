#!/bin/sh
# List the tasks of the operator's endpoints, the newest first.
set -eu
usage() {
    echo "usage: ${0##*/} [-s STATUS] [-e ENDPOINT_ID] [-c CURSOR]" >&2
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
[ $# -eq 0 ] || usage
request GET /api/webhooks/operator/tasks --get \
    ${status:+--data-urlencode "status=$status"} \
    ${endpoint_id:+--data "endpoint_id=$endpoint_id"} \
    ${cursor:+--data-urlencode "cursor=$cursor"}
