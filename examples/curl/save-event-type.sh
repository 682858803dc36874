#!/bin/sh
# Create or change an event type of the catalogue; schema and example are files of JSON.
set -eu
usage() {
    echo "usage: ${0##*/} [-d DESCRIPTION] [-s SCHEMA_FILE] [-x EXAMPLE_FILE] NAME" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

description='' schema='' example=''
while getopts d:s:x: option; do
    case $option in
        d) description=$(quoted "$OPTARG") ;;
        s) schema=$OPTARG ;;
        x) example=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || usage
name=$(quoted "$1")
more="${description:+,\"description\":$description}"
[ -z "$schema" ] || more="$more,\"schema\":$(cat -- "$schema")"
[ -z "$example" ] || more="$more,\"example\":$(cat -- "$example")"
post /api/webhooks/event-types "{\"name\":$name$more}"
