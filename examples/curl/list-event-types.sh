#!/bin/sh
# List the catalogue of event types; or look at one, with its schema and example.
set -eu
usage() {
    echo "usage: ${0##*/} [-c CURSOR] [NAME]" >&2
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
case ${1:-} in *[!A-Za-z0-9_.]*) usage ;; esac
request GET "/api/webhooks/event-types${1:+/$1}" --get ${cursor:+--data-urlencode "cursor=$cursor"}
