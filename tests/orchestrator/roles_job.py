"""Users with Prunella's roles meet Airflow's REST API under the FAB auth manager: prints which requests were let in, as JSON.

Run by test_roles.py in an environment that names an Airflow home whose roles were imported. No server: the API's own
application, called in this process; everybody signs in with a password.
"""

import json

from airflow.api_fastapi.app import create_app
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from fastapi.testclient import TestClient

DAG = "/api/v2/dags/pretrain_segment"
RUN = f"{DAG}/dagRuns/demo__seg-0000__r0"
#: What each request stands for. Those about a run that is not there are answered 404 once they are let in.
REQUESTS = {
    "look": ("GET", DAG, None),
    "trigger": ("POST", f"{DAG}/dagRuns", {"logical_date": None, "conf": {"experiment": "demo"}}),
    "trigger another DAG": ("POST", "/api/v2/dags/sweep_fleet/dagRuns", {"logical_date": None}),
    "promote": ("POST", "/api/v2/dags/promote_checkpoint/dagRuns", {"logical_date": None, "conf": {"experiment": "demo"}}),
    "answer": ("PATCH", f"{RUN}/taskInstances/attempt_0.ask/-1/hitlDetails", {"chosen_options": ["Try again"]}),
    "clear a task": ("POST", f"{DAG}/clearTaskInstances", {"dag_run_id": "demo__seg-0000__r0", "dry_run": True}),
    "end a run": ("PATCH", RUN, {"state": "failed"}),
    "change a pool": ("POST", "/api/v2/pools", {"name": "mine", "slots": 1}),
}
USERS = {
    "viewer": [],
    "trigger": ["prunella_trigger"],
    "override": ["prunella_override"],
    "promote": ["prunella_promote"],
}
PASSWORD = "only-for-this-test"


def add_users() -> None:
    """One a role, each also a Viewer."""
    with get_application_builder() as builder:
        for name, roles in USERS.items():
            found = [builder.sm.find_role(role) for role in ["Viewer", *roles]]
            assert builder.sm.add_user(name, name, name, f"{name}@localhost", found, password=PASSWORD)


def let_in(client: TestClient, name: str) -> list[str]:
    """What a user may do."""
    answer = client.post("/auth/token", json={"username": name, "password": PASSWORD})
    assert answer.is_success, answer.text
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    codes = {
        what: client.request(method, path, json=body, headers=headers).status_code
        for what, (method, path, body) in REQUESTS.items()
    }
    assert set(codes.values()) <= {200, 201, 403, 404, 422}, codes
    print(name, codes)
    return [what for what, code in codes.items() if code != 403]


def main() -> None:
    add_users()
    with TestClient(create_app()) as client:
        print("FOUND " + json.dumps({name: let_in(client, name) for name in USERS}))


if __name__ == "__main__":
    main()
