#!/bin/sh
# List the erasures of tenants, or of one, the newest first, with what they deleted.
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
tenant_id=''
[ $# -eq 0 ] || tenant_id=$(number "$1")
request GET /api/webhooks/tenants/erasures --get \
    ${tenant_id:+--data "tenant_id=$tenant_id"} \
    ${cursor:+--data-urlencode "cursor=$cursor"}
