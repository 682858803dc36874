#!/bin/sh
# Publish an event. A tenant's token says for whom; with a service's token, -t does.
set -eu
usage() {
    echo "usage: ${0##*/} [-t TENANT_ID] [-k KEY] TYPE [DATA | @FILE | -]" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

more=''
while getopts t:k: option; do
    case $option in
        t)
            tenant_id=$(number "$OPTARG")
            more="$more,\"tenant_id\":$tenant_id"
            ;;
        k)
            key=$(quoted "$OPTARG")
            more="$more,\"key\":$key"
            ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || [ $# -eq 2 ] || usage
type=$(quoted "$1")
case ${2:-} in
    '') data='{}' ;;
    -) data=$(cat) ;;
    @*) data=$(cat -- "${2#@}") ;;
    *) data=$2 ;;
esac
post /api/v1/data-consumption/webhooks/events "{\"type\":$type,\"data\":$data$more}"
