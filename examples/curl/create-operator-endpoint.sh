#!/bin/sh
# Add an endpoint that hears of every tenant's operational events; of all of them without -t.
set -eu
usage() {
    echo "usage: ${0##*/} [-t TYPE]... URL      ENDPOINT_SECRET: signs its deliveries; made up if not set" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

types=''
while getopts t: option; do
    case $option in
        t)
            each=$(quoted "$OPTARG")
            types="${types:+$types,}$each"
            ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || usage
case $1 in *:*) ;; *) usage ;; esac
url=$(quoted "$1")
secret=
[ -z "${ENDPOINT_SECRET:-}" ] || secret=",\"secret\":$(quoted "$ENDPOINT_SECRET")"
post /api/webhooks/operator/endpoints "{\"url\":$url${types:+,\"events\":[$types]}$secret}"
