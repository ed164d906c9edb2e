"""Schemathesis reads the OpenAPI document and sends what it allows and what it forbids, to a real process.

Whatever is sent: no 5xx, no answer that the document does not describe, and no row that no 2xx has named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import json

import psycopg
import pytest
import requests
import schemathesis
from fix_process import environment, variables
from fix_servers import Servers, new_directory
from hypothesis import settings

from bench.stand import Stand

DOCUMENT = json.loads(Path(__file__).with_name("openapi.json").read_text(encoding="utf-8"))
for item in DOCUMENT["paths"].values():
    for op in item.values():
        op["responses"].pop("default", None)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
WORDS = {
    "Differs from the header Idempotency-Key",
    "Must be an instant of RFC 3339 with its zone, from 1970 to 9999-12-30",
    "Must not be given together with delay_ms",
    "Must not exceed max_ms",
    "Must consist of printable characters",
    "Input should be a valid integer",
    "Text must not contain the NUL character",
    "Integers must fit into 64 bits, other numbers into a double",
    "Objects and lists must not nest deeper than 64 levels",
    }

from schemathesis.specs.openapi.checks import positive_data_acceptance

class Fuzzed:
    def __init__(self, url, postgres_url, connection):
        self.url = url
        self.session = requests.Session()
        self.connection = connection
        self.created = set()
        self.seen = Counter()
        self.words=Counter()

    def talk(self, case):
        response = case.call(base_url=self.url, session=self.session)
        w = []
        if response.status_code == 422:
            w = [e["message"] for e in response.json()["errors"]]
        exc = [positive_data_acceptance] if w and set(w) <= WORDS else []
        case.validate_response(response, excluded_checks=exc, transport_kwargs={"session": self.session, "base_url": self.url})
        self.seen[case.operation.label, case.meta.generation.mode.value, response.status_code] += 1
        self.words.update(set(w))
        self.note(response)

    def note(self, response):
        if response.status_code == 201:
            self.created.add(response.json()["id"])
        elif response.status_code == 200 and response.request.url.endswith("/bulk"):
            self.created |= {i["task"]["id"] for i in response.json()["items"] if i["result"] == "created"}
        n = self.connection.execute("SELECT count(*) FROM tasks").fetchone()[0]
        assert n == len(self.created)


@pytest.fixture(scope="module")
def fuzzed(servers: Servers) -> Iterator[Fuzzed]:
    with new_directory() as folder, servers.database() as postgres_url:
        env = environment(**variables(postgres_url, servers.empty_redis()))
        with Stand(env, folder) as stand, psycopg.connect(postgres_url, autocommit=True) as connection:
            api = stand.api("api").start()
            f = Fuzzed(api.url, postgres_url, connection)
            yield f
            for k in sorted(f.seen.items()): print(*k)
            print(sum(f.seen.values()), len(f.created))
            for k in f.words.most_common(): print(k)
            print(api.said()[:3000])


import os
@SCHEMA.parametrize()
@settings(max_examples=int(os.environ.get("N", "10")), deadline=None)
def test_fuzz(case, fuzzed):
    fuzzed.talk(case)

def test_stateful(fuzzed):
    from schemathesis.generation.stateful import run_state_machine_as_test
    class Machine(SCHEMA.as_state_machine()):
        def get_call_kwargs(self, case):
            return {"session": fuzzed.session, "base_url": fuzzed.url}
        def validate_response(self, response, case, *a, **k):
            w = []
            if response.status_code == 422:
                w = [e["message"] for e in response.json()["errors"]]
            exc = [positive_data_acceptance] if w and set(w) <= WORDS else []
            super().validate_response(response, case, additional_checks=None, **k) if not exc else case.validate_response(response, excluded_checks=exc, transport_kwargs=self.get_call_kwargs(case))
            fuzzed.note(response)
            fuzzed.seen["stateful", case.operation.label, response.status_code] += 1
    run_state_machine_as_test(Machine, settings=settings(max_examples=int(os.environ.get("N", "10")), deadline=None, stateful_step_count=10))
