"""Schemathesis reads the OpenAPI document and sends a real process what it allows and what it forbids.

Whatever is sent: no answer that the document does not describe, so no 5xx either, nothing allowed refused and
nothing forbidden accepted, and no row in the table that no 2xx has named. tests/flow/test_api_poison.py has
the inputs that no document leads to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
import schemathesis
from fix_process import environment, variables
from fix_servers import Servers, new_directory
from hypothesis import settings
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from bench.stand import Stand

IN_WORDS = {
    "Differs from the header Idempotency-Key",
    "Input should be a valid integer",
    "Integers must fit into 64 bits, other numbers into a double",
    "Must be an instant of RFC 3339 with its zone, from 1970 to 9999-12-30",
    "Must consist of printable characters",
    "Must not be given together with delay_ms",
    "Must not exceed max_ms",
    "Objects and lists must not nest deeper than 64 levels",
    "Text must not contain the NUL character",
}
"""Rules that JSON Schema cannot state, and that the document has in its descriptions."""

ELSEWHERE = {"403", "408", "413", "503"}
"""Answers that need another machine, a slow or large body, or a store that is away."""


def documented() -> dict[str, Any]:
    """The document without `default`, which would describe every answer."""
    made = json.loads(Path(__file__).with_name("openapi.json").read_text(encoding="utf-8"))
    for item in made["paths"].values():
        for operation in item.values():
            del operation["responses"]["default"]
    return made


def schema(seed: int) -> OpenApiSchema:
    return schemathesis.openapi.from_dict(documented(), config=SchemathesisConfig(seed=seed))


class Witness:
    """Sends requests, judges the answers, and counts the rows after each."""

    def __init__(self, url: str, connection: psycopg.Connection[Any]) -> None:
        self.transport = {"base_url": url, "session": requests.Session()}
        self.seen: Counter[tuple[str, str]] = Counter()
        self._connection = connection
        self._created: set[str] = set()

    def forget(self) -> None:
        """Begin anew with an empty database."""
        self._connection.execute("WITH _ AS (DELETE FROM idempotency_keys) DELETE FROM tasks")
        self._created.clear()

    def send(self, case: Case) -> None:
        if self.seen.total() % 2:  # most requests carry the example's key: half of them shall be new
            self._connection.execute("DELETE FROM idempotency_keys")
        self.judge(case, case.call(**self.transport))

    def judge(self, case: Case, response: Any, recorder: ScenarioRecorder | None = None) -> None:
        """Fail if the answer is not as the document says, or says less than the table.

        `recorder` knows what went before in a chain of requests.
        """
        said = response.json()
        self.seen[case.operation.label, str(response.status_code)] += 1
        if response.status_code == 201:
            self._created.add(said["id"])
        elif case.operation.label == "POST /v1/tasks/bulk" and response.status_code == 200:
            self._created |= {item["task"]["id"] for item in said["items"] if item["result"] == "created"}
        complaints = {error["message"] for error in said.get("errors", ())}
        spared = [positive_data_acceptance] if complaints and complaints <= IN_WORDS else []
        case.validate_response(
            response, excluded_checks=spared, transport_kwargs=self.transport, recorder=recorder
        )
        [(rows,)] = self._connection.execute("SELECT count(*) FROM tasks").fetchall()
        if rows != (named := len(self._created)):
            self.forget()  # so that the requests after this one are not blamed for it
            pytest.fail(f"{rows} rows, and {named} that a 2xx named, after {case.as_curl_command()}")


@pytest.fixture(scope="module")
def witness(servers: Servers) -> Iterator[Witness]:
    with new_directory() as folder, servers.database() as postgres_url:
        env = environment(**variables(postgres_url, servers.empty_redis()), LOG_LEVEL="error")
        with Stand(env, folder) as stand, psycopg.connect(postgres_url, autocommit=True) as connection:
            api = stand.api("api").start()
            witness = Witness(api.url, connection)
            yield witness
            assert (api.alive, api.said()) == (True, "")


def scenarios(seed: int, witness: Witness, examples: int) -> None:
    """Chains of requests, each of which takes up what an earlier one was answered."""

    class Machine(schema(seed).as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            witness.forget()

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return witness.transport

        def validate_response(self, response: Any, case: Case, **_: Any) -> None:
            witness.judge(case, response, self.recorder)

    often = settings(max_examples=examples, stateful_step_count=12, deadline=None, derandomize=True)
    Machine.run(settings=often)


@schema(seed=1).parametrize()
@settings(max_examples=25, deadline=None)
def test_an_answer_is_as_the_document_says(case, witness):
    witness.send(case)


def test_an_answer_to_a_chain_of_requests_is_as_the_document_says(witness):
    scenarios(1, witness, 25)


@pytest.mark.slow
@pytest.mark.timeout(600)
@schema(seed=2).parametrize()
@settings(max_examples=300, deadline=None)
def test_thousands_of_answers_are_as_the_document_says(case, witness):
    witness.send(case)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_answers_to_hundreds_of_chains_are_as_the_document_says(witness):
    scenarios(2, witness, 200)


def test_every_answer_of_the_document_was_given(witness):
    """So that those above have not talked about little."""
    described = {
        (f"{method.upper()} {path}", status)
        for path, item in documented()["paths"].items()
        for method, operation in item.items()
        for status in operation["responses"]
        if status not in ELSEWHERE
    }
    if not {label for label, _ in described} <= {label for label, _ in witness.seen}:
        pytest.skip("the tests above did not all run")
    described.remove(("POST /v1/tasks/{task_id}/cancel", "409"))  # no worker runs, so no task has ended
    assert described <= set(witness.seen)
