"""``hookjetty db rotate-secrets``: everything encrypted gets the newest key, whatever happens
meanwhile, and the older keys may go.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from cryptography.fernet import Fernet
from peewee import OperationalError

from app import db as database_module
from app import reencryption
from app.db import claim_secret_keys, db, hold_secret_key, secret_keys_in_use
from app.endpoints import Registry
from app.idempotency import Answer, Call, once
from app.models import Endpoint
from app.reencryption import NotRestarted, Report, Unreadable, rotate_secrets
from app.settings import load
from app.signing import UnreadableSecret, Vault
from tests.conftest import JWT_SECRET
from tests.dispatching import is_waiting_for_a_lock, wait_until
from tests.factories import make_endpoint, rows
from tests.live import ROOT

pytestmark = pytest.mark.usefixtures("database")

OLD, NEW, LOST = (Fernet.generate_key().decode() for _ in range(3))
FUTURE, PAST = "2999-01-01T00:00:00.000Z", "2020-01-01T00:00:00.000Z"


def vault_of(*keys: str) -> Vault:
    """As the API and the command have it: what it encrypts with is on record."""
    return Vault(keys, before_encrypting=hold_secret_key)


@pytest.fixture
def before() -> Vault:
    """What wrote everything so far."""
    vault = vault_of(OLD)
    claim_secret_keys(vault.fingerprints)
    return vault


@pytest.fixture
def after(before: Vault) -> Vault:
    """The new key in front, and the processes restarted with it."""
    vault = vault_of(NEW, OLD)
    claim_secret_keys(vault.fingerprints)
    return vault


def endpoint(vault: Vault, n: int = 0, *, tenant_id: int = 7, **columns: Any) -> int:
    """An endpoint whose secret is "the secret number <n>"."""
    secret = vault.encrypt(f"the secret number {n:02}", tenant_id)
    return make_endpoint(
        tenant_id, f"https://example.com/{tenant_id}/{n}", **{"secret": secret} | columns
    )


def retired(vault: Vault, text: str, until: str = FUTURE) -> str:
    return json.dumps([{"secret": vault.encrypt(text, 7), "until": until}])


def stored(endpoint_id: int) -> Endpoint:
    return Endpoint.get_by_id(endpoint_id)


def call(key: str, owner: int = 7) -> Call:
    return Call(owner, "POST", "/endpoints", key, b"{}")


def answered(key: str, vault: Vault, owner: int = 7, *, seal: bool = True) -> Answer:
    """The answer to a write that was made with this key, now or before."""
    return once(call(key, owner), lambda: Answer(201, f"answer to {key}"), vault, seal=seal)


def test_everything_is_encrypted_with_the_newest_key_and_reads_as_before(before, after):
    newest = Vault([NEW])
    mine = endpoint(before, 1, retired_secrets=retired(before, "one before"))
    theirs = endpoint(before, 2, tenant_id=8, status="paused")
    gone = endpoint(before, 3, status="deleted")
    half = endpoint(after, 4, retired_secrets=retired(before, "one before"))
    answered("sealed", before)
    answered("an admin's", before, owner=0)
    answered("open", before, seal=False)

    report = rotate_secrets(after)

    assert report == Report(endpoints=4, answers=2, forgotten=[before.fingerprints[0]])
    for endpoint_id, tenant_id, n in ((mine, 7, 1), (theirs, 8, 2), (gone, 7, 3), (half, 7, 4)):
        assert newest.decrypt(stored(endpoint_id).secret, tenant_id) == f"the secret number {n:02}"
    for endpoint_id in (mine, half):
        (kept,) = stored(endpoint_id).retired_secrets
        assert newest.decrypt(kept["secret"], 7) == "one before"
        assert kept["until"] == FUTURE
    for key, owner in (("sealed", 7), ("an admin's", 0), ("open", 7)):
        answer = answered(key, newest, owner)
        assert (answer.is_repeat, answer.body) == (True, f"answer to {key}")
    claim_secret_keys(newest.fingerprints)  # so a process starts without the old key
    assert secret_keys_in_use() == set(newest.fingerprints)


def test_again_it_changes_nothing(before, after):
    for n in range(3):
        endpoint(before, n)
    answered("sealed", before)
    assert rotate_secrets(after).endpoints == 3

    def everything() -> list[Any]:
        tables = ("endpoints", "idempotency_keys", "secret_keys")
        return [rows(db.execute_sql(f"SELECT xmin, * FROM hookjetty.{name}")) for name in tables]

    first = everything()
    assert rotate_secrets(after) == Report()
    assert everything() == first


def test_it_is_no_change_that_people_or_handshakes_see(before, after):
    before_it = stored(endpoint(before))
    rotate_secrets(after)
    after_it = stored(before_it.id)
    same = ("version", "updated_at", "settling", "status")
    assert [getattr(before_it, name) for name in same] == [getattr(after_it, name) for name in same]


def test_it_goes_step_by_step_and_after_a_crash_goes_on(before, after, monkeypatch):
    """Each page of rows is committed by itself; the third one fails."""
    monkeypatch.setattr(reencryption, "ENDPOINTS_AT_A_TIME", 3)
    monkeypatch.setattr(reencryption, "ANSWERS_AT_A_TIME", 2)
    ids = [endpoint(before, n) for n in range(10)]
    for n in range(5):
        answered(f"sealed {n}", before)
        answered(f"open {n}", before, seal=False)
    pages = []
    write = reencryption._write_endpoints

    def crash_at_the_third(vault: Vault, stale: list[Endpoint]) -> int:
        pages.append(len(stale))
        if len(pages) == 3:
            raise KeyboardInterrupt
        return write(vault, stale)

    monkeypatch.setattr(reencryption, "_write_endpoints", crash_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        rotate_secrets(after)
    monkeypatch.setattr(reencryption, "_write_endpoints", write)
    done = [vault_reads(Vault([NEW]), each) for each in ids]
    assert done == [True] * 6 + [False] * 4
    assert secret_keys_in_use() == set(after.fingerprints), "the old one is needed"

    assert rotate_secrets(after) == Report(4, 5, [before.fingerprints[0]])
    assert all(vault_reads(Vault([NEW]), each) for each in ids)
    for n in range(5):
        assert answered(f"sealed {n}", Vault([NEW])).body == f"answer to sealed {n}"


def vault_reads(vault: Vault, endpoint_id: int) -> bool:
    row = stored(endpoint_id)
    try:
        vault.decrypt(row.secret, row.tenant_id)
    except UnreadableSecret:
        return False
    return True


def test_what_cannot_be_decrypted_is_named_and_left_alone(before, after):
    """Also what is readable of such an endpoint goes over; the others are not held up."""
    lost = Vault([LOST])
    good = endpoint(before, 1)
    bad = endpoint(lost, 2)
    moved = endpoint(before, 3, tenant_id=8)
    db.execute_sql("INSERT INTO hookjetty.tenants VALUES (9)")
    Endpoint.update(tenant_id=9).where(Endpoint.id == moved).execute()
    half = endpoint(before, 4, retired_secrets=retired(lost, "one before"))
    endpoint(lost, 5, status="deleted")
    over = endpoint(before, 6, retired_secrets=retired(lost, "long ago", PAST))
    answered("sealed", lost)
    as_it_was = {each: stored(each).secret for each in (bad, moved)}

    report = rotate_secrets(after)

    assert report.unreadable == [Unreadable(bad, 7), Unreadable(moved, 9), Unreadable(half, 7)]
    assert (report.endpoints, report.unreadable_answers) == (3, 1)
    assert not report.is_complete
    assert {each: stored(each).secret for each in (bad, moved)} == as_it_was
    for each in (good, half, over):
        assert vault_reads(Vault([NEW]), each)
    assert stored(half).retired_secrets != []
    assert stored(over).retired_secrets == []
    assert report.forgotten == list(before.fingerprints), "it encrypts nothing that can be read"


@pytest.mark.parametrize(
    "nonsense",
    ["7", "[7]", '["x"]', '[{"secret": "x"}]', '[{"secret": 7, "until": "2999-01-01T00:00:00Z"}]',
     '[{"secret": "x", "until": "some day"}]', '[{"secret": "x", "until": "2999-01-01T00:00:00"}]'],
)  # fmt: skip
def test_a_row_that_is_not_of_our_making_holds_up_nobody(before, after, nonsense):
    bad = endpoint(before, 1, retired_secrets=nonsense)
    good = endpoint(before, 2)
    report = rotate_secrets(after)
    assert report.unreadable == [Unreadable(bad, 7)]
    assert report.endpoints == 2
    assert vault_reads(Vault([NEW]), bad)
    assert vault_reads(Vault([NEW]), good)


def test_a_key_that_is_not_given_is_forgotten_only_if_nothing_may_need_it(before, after):
    lost = vault_of(LOST)
    bad = endpoint(lost)
    assert rotate_secrets(after).forgotten == list(before.fingerprints)
    assert secret_keys_in_use() == {*vault_of(NEW).fingerprints, *lost.fingerprints}
    Endpoint.update(secret=after.encrypt("a new one in its place", 7)).where(
        Endpoint.id == bad
    ).execute()
    assert rotate_secrets(after) == Report(forgotten=list(lost.fingerprints))


def test_before_any_process_has_the_new_key_nothing_is_changed(before):
    endpoint_id = endpoint(before)
    with pytest.raises(NotRestarted, match="restart API and dispatchers with it first"):
        rotate_secrets(Vault([NEW, OLD]))
    assert vault_reads(before, endpoint_id)


# ---------------------------------------------------------------------------- while others work


@pytest.fixture
def elsewhere(database: str) -> Callable[..., threading.Thread]:
    """Run something in another thread, with a connection of its own."""
    started = []

    def run(work: Callable[[], object]) -> threading.Thread:
        def connected() -> None:
            db.ready()
            try:
                work()
            finally:
                db.close()

        thread = threading.Thread(target=connected)
        thread.start()
        started.append(thread)
        return thread

    yield run
    for thread in started:
        thread.join(20)


def settings_with(*keys: str) -> Registry:
    return Registry.from_settings(
        load(
            {
                "HOOKJETTY_DATABASE_URL": db.database,
                "HOOKJETTY_JWT_SECRET": JWT_SECRET,
                "HOOKJETTY_SECRET_KEYS": ",".join(keys),
            }
        )
    )


def test_a_secret_that_is_changed_meanwhile_wins(before, after, elsewhere):
    """The change has read the secret, which it is going to retire, before it is encrypted again."""
    endpoint_id = endpoint(before, 1)
    neighbour = endpoint(before, 2)
    reports = []
    with db.atomic():
        registered = settings_with(NEW, OLD).register(
            7, {"url": "https://example.com/7/1", "secret": "a secret of my own choice"}
        )
        assert registered.endpoint.id == endpoint_id
        elsewhere(lambda: reports.append(rotate_secrets(after)))
        wait_until(is_waiting_for_a_lock)
        assert vault_reads(before, neighbour), "its page waits, too"
    wait_until(lambda: reports)
    newest, row = Vault([NEW]), stored(endpoint_id)
    assert newest.decrypt(row.secret, 7) == "a secret of my own choice"
    (one_before,) = row.retired_secrets
    assert newest.decrypt(one_before["secret"], 7) == "the secret number 01"
    assert vault_reads(newest, neighbour)
    assert reports == [Report(2, 0, list(before.fingerprints))]


def test_what_a_process_writes_with_the_old_key_meanwhile_is_found(before, after, elsewhere):
    """It has not committed yet when the old key is about to be forgotten."""
    endpoint(before, 1)
    reports = []
    with db.atomic():
        registered = settings_with(OLD).register(8, {"url": "https://example.com/8"})
        elsewhere(lambda: reports.append(rotate_secrets(after)))
        wait_until(is_waiting_for_a_lock)
    wait_until(lambda: reports)
    assert reports == [Report(2, 0, list(before.fingerprints))]
    assert vault_reads(Vault([NEW]), registered.endpoint.id)


def test_a_key_that_is_used_after_it_was_forgotten_is_on_record_again(before, after):
    endpoint(before)
    rotate_secrets(after)
    settings_with(OLD).register(8, {"url": "https://example.com/8"})
    assert secret_keys_in_use() == set(after.fingerprints)
    with pytest.raises(database_module.SchemaMismatch, match="lacks a key"):
        claim_secret_keys(Vault([NEW]).fingerprints)


def test_a_process_that_goes_on_with_the_old_key_is_told_of(before, after, monkeypatch):
    """Always something new when the last look is taken."""
    numbers = iter(range(100))
    monkeypatch.setattr(
        reencryption, "_renew_answers", lambda *_: endpoint(before, next(numbers), tenant_id=8)
    )
    with pytest.raises(NotRestarted, match="goes on encrypting with an older one"):
        rotate_secrets(after)
    assert secret_keys_in_use() == set(after.fingerprints)


def test_a_lost_connection_is_an_error_and_no_half_truth(before, after, monkeypatch):
    endpoint_id = endpoint(before)
    write = reencryption._write_endpoints

    def cut(vault: Vault, stale: list[Endpoint]) -> int:
        (process,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
        with psycopg2.connect(db.database) as other:
            other.cursor().execute("SELECT pg_terminate_backend(%s)", (process,))
        return write(vault, stale)

    monkeypatch.setattr(reencryption, "_write_endpoints", cut)
    with pytest.raises(OperationalError):
        rotate_secrets(after)
    db.give_up()
    db.ready()
    assert vault_reads(before, endpoint_id)


# ------------------------------------------------------------------------------------ the command


def test_the_command_says_what_it_did(database, before, after):
    endpoint(before, 1)
    bad = endpoint(Vault([LOST]), 2)

    def run(*keys: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli", "db", "rotate-secrets"],
            env={
                "PYTHONPATH": str(ROOT),
                "HOOKJETTY_DATABASE_URL": database,
                "HOOKJETTY_SECRET_KEYS": ",".join(keys),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(NEW, OLD)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "encrypted again: endpoints: 1, stored answers: 0",
        f"key {before.fingerprints[0]} encrypts nothing any more",
    ]
    assert f"endpoint {bad} of tenant 7: a secret cannot be decrypted" in done.stderr

    done = run(NEW, LOST)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "encrypted again: endpoints: 1, stored answers: 0",
        "all keys but the newest may be removed from HOOKJETTY_SECRET_KEYS",
    ]
    done = run(OLD)
    assert done.returncode == 1
    assert "restart API and dispatchers with it first" in done.stderr
