"""What we send is Standard Webhooks, says software that is not ours."""

from __future__ import annotations

import json

import pytest
import standardwebhooks

from app.db import db
from tests.acceptance import foreign
from tests.acceptance.receiver import RecordingReceiver, Seen
from tests.dispatching import SECRET, Dispatchers, add_endpoint, all_done, sealed, wait_until
from tests.factories import publish

NEW_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

DATA = [
    {},
    {"text": 'ä€😀 \\ " \u2028 </script> \x7f'},
    {"numbers": [0.1, 1e300, 12345678901234567890, -0.0], "nested": [[[{"a": None}]]]},
    {"long": "x" * 200_000},
]


@pytest.fixture
def deliveries(database: str, receiver: RecordingReceiver) -> list[Seen]:
    """First tries, second tries, replays, and tries while a secret rotates."""
    with Dispatchers(database, RETRY_SCHEDULE="0,0.2s", RETRY_JITTER="0"):
        add_endpoint(7, receiver.url("/hook"))
        add_endpoint(7, receiver.url("/flaky", status=500, times=2))
        overlap = [{"secret": sealed(NEW_SECRET, 7), "until": "2999-01-01T00:00:00.000Z"}]
        add_endpoint(7, receiver.url("/rotating"), retired_secrets=json.dumps(overlap))
        for data in DATA:
            publish(7, data=data)
        wait_until(all_done)
        db.execute_sql(
            """
            INSERT INTO hookjetty.replays
                (tenant_id, endpoint_id, status, from_id, cursor_id, upto_id)
            SELECT 7, min(id), 'running', 0, 0, hookjetty.new_id() FROM hookjetty.endpoints
            """
        )
        wait_until(lambda: len(receiver.at("/hook")) == 2 * len(DATA))
        wait_until(all_done)
    seen = receiver.seen
    assert len(seen) == 4 * len(DATA) + 2
    assert {request.number for request in receiver.at("/flaky")} == {1, 2}
    assert sum("webhook-replay" in request.headers for request in seen) == len(DATA)
    return seen


SECRETS = dict.fromkeys(("/hook", "/flaky", "/rotating"), SECRET)


def test_the_packages_of_pypi_accept_every_request_and_refuse_what_was_changed(
    deliveries: list[Seen],
) -> None:
    foreign.verify_in_python(deliveries, SECRETS)
    rotating = [request for request in deliveries if request.path == "/rotating"]
    foreign.verify_in_python(rotating, {"/rotating": NEW_SECRET})
    for changed in changes_of(deliveries[0]):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            foreign.verify_in_python([changed], SECRETS)


@pytest.mark.skipif(not foreign.has_node(), reason="`make test` fetches npm's package first")
def test_the_package_of_npm_accepts_every_request_and_refuses_what_was_changed(
    deliveries: list[Seen],
) -> None:
    assert foreign.verify_in_node(deliveries, SECRETS) == len(deliveries)
    for changed in changes_of(deliveries[0]):
        with pytest.raises(AssertionError, match="No matching signature"):
            foreign.verify_in_node([changed], SECRETS)


def changes_of(request: Seen) -> list[Seen]:
    """Requests that must not verify, or else what verifies would prove nothing."""
    return [
        request._replace(body=request.body.replace(b"export", b"import")),
        request._replace(headers=request.headers | {"webhook-id": "evt_1"}),
    ]
