#!/bin/sh
# Take an event type out of the catalogue; its events stay.
set -eu
usage() {
    echo "usage: ${0##*/} NAME" >&2
    exit 2
}
. "$(dirname "$0")/request.sh"

[ $# -eq 1 ] || usage
case $1 in '' | *[!A-Za-z0-9_.]*) usage ;; esac
name=$(quoted "$1")
post /api/webhooks/event-types/delete "{\"name\":$name}"
