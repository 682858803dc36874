# One request to the API with curl; read by the scripts beside this file, not run itself.
#
#   HOOKJETTY_URL     where the API is; http://127.0.0.1:8080 if not set
#   HOOKJETTY_TOKEN   the bearer token, for example of: hookjetty token --role admin
#   REQUEST_ID        set it to the id that a failure printed to send the same request again: what
#                     it does is done once

# request METHOD PATH [CURL OPTION...]   the body, if there is one, comes from standard input
#
# Prints the answer; a refusal goes to standard error, with the request's id.
request() {
    : "${HOOKJETTY_TOKEN:?set it to a token, such as the output of: hookjetty token --role admin}"
    method=$1 path=$2 url=${HOOKJETTY_URL:-http://127.0.0.1:8080}
    shift 2
    request_id=${REQUEST_ID:-curl-$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')}
    # The token goes through descriptor 3: on the command line, every user could read it in ps.
    answer=$(curl --silent --show-error --fail-with-body --max-time 30 \
        --config /dev/fd/3 --request "$method" --header "X-Request-Id: $request_id" \
        "$@" "${url%/}$path" 3<<END
header = "Authorization: Bearer $HOOKJETTY_TOKEN"
END
    ) || {
        status=$?
        [ -z "$answer" ] || printf '%s\n' "$answer" >&2
        printf 'failed, request id: %s\n' "$request_id" >&2
        exit "$status"
    }
    if command -v jq >/dev/null; then
        printf '%s\n' "$answer" | jq .
    else
        printf '%s\n' "$answer"
    fi
}

# post PATH BODY
post() {
    printf '%s' "$2" | request POST "$1" --header 'Content-Type: application/json' --data-binary @-
}

# The text as a JSON string.
quoted() {
    case $1 in *[[:cntrl:]]*) usage ;; esac
    printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g')"
}

# The text, if it is a whole number.
number() {
    case $1 in '' | *[!0-9]*) usage ;; esac
    printf '%s' "$1"
}
