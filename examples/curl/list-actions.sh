#!/bin/sh
# List what people did, the newest first; FROM and TO are times such as 2025-10-05T06:00:00Z.
set -eu
usage() {
    echo "usage: ${0##*/} [-t TENANT_ID] [-a ACTOR] [-o OPERATION] [-f FROM] [-u TO] [-c CURSOR]" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

tenant_id='' actor='' action='' from='' to='' cursor=''
while getopts t:a:o:f:u:c: option; do
    case $option in
        t) tenant_id=$(number "$OPTARG") ;;
        a) actor=$OPTARG ;;
        o) action=$OPTARG ;;
        f) from=$OPTARG ;;
        u) to=$OPTARG ;;
        c) cursor=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || usage
request GET /api/webhooks/audit --get \
    ${tenant_id:+--data "tenant_id=$tenant_id"} \
    ${actor:+--data-urlencode "actor=$actor"} \
    ${action:+--data-urlencode "action=$action"} \
    ${from:+--data-urlencode "from=$from"} \
    ${to:+--data-urlencode "to=$to"} \
    ${cursor:+--data-urlencode "cursor=$cursor"}
