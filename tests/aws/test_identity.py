"""Signatures, keys and their file, and what keeps web pages out: refused as AWS refuses, and never by chance."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anybatch
import botocore.auth
import botocore.exceptions
import pytest
from anybatch import InvalidValue
from anybatch.plugins.aws import AwsFrontEnd, AwsSettings, Identity
from aws_rig import REGION, Served, add_queue, define

LIST = "/v1/describejobqueues"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as served:
        add_queue(served.client())
        yield served


def refusal(served: Served, headers: dict[str, str], *, path: str = LIST, body: bytes = b"{}") -> Any:
    """How a call is refused: (status, type, message); None if it is not."""
    status, answer, got = served.post(path, body, signed=False, **headers)
    return None if status == 200 else (status, got["x-amzn-ErrorType"], answer["message"])


def signed(served: Served, **change: Any) -> dict[str, str]:
    arguments = {"path": LIST, "body": b"{}", "method": "POST", **change}
    headers = {"Content-Type": "application/json", **arguments.pop("headers", {})}
    return served.sign(arguments.pop("path"), arguments.pop("body"), arguments.pop("method"), headers, **arguments)


# -- signatures -------------------------------------------------------------------------------------


def test_a_signed_call_passes_and_may_be_repeated_while_it_is_fresh(served: Served) -> None:
    headers = signed(served)
    assert refusal(served, headers) is None
    assert refusal(served, headers) is None


TAMPERED: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "body": lambda h: {"headers": h, "body": b'{"maxResults": 5}'},
    "path": lambda h: {"headers": h, "path": "/v1/describecomputeenvironments"},
    "query": lambda h: {"headers": h, "path": LIST + "?a=b"},
    "signed header": lambda h: {"headers": {**h, "Content-Type": "application/json; charset=utf-8"}},
    "signature": lambda h: {"headers": {**h, "Authorization": h["Authorization"][:-1] + "0"}},
    "last digit": lambda h: {"headers": {**h, "Authorization": h["Authorization"][:-1] + "f"}},
    "time": lambda h: {"headers": {**h, "X-Amz-Date": h["X-Amz-Date"][:-3] + "00Z"}},
}


@pytest.mark.parametrize("what", sorted(TAMPERED))
def test_a_tampered_call_is_refused(served: Served, what: str) -> None:
    headers = signed(served)
    changed = TAMPERED[what](headers)
    if changed == {"headers": headers}:
        return  # one in sixteen signatures ends so already
    found = refusal(served, **changed)
    assert found is not None
    assert found[:2] == (403, "InvalidSignatureException")


def at(monkeypatch: pytest.MonkeyPatch, offset_s: float) -> None:
    """Clients' clocks are off by this."""
    when = datetime.now(UTC) + timedelta(seconds=offset_s)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: when.replace(tzinfo=None))


@pytest.mark.parametrize(("offset_s", "word"), [(-3600, "expired"), (3600, "not yet current"), (-330, "expired")])
def test_a_call_outside_the_time_window_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch, offset_s: float, word: str
) -> None:
    at(monkeypatch, offset_s)
    found = refusal(served, signed(served))
    assert found[:2] == (403, "InvalidSignatureException")
    assert f"Signature {word}" in found[2]


def test_a_clock_that_is_a_little_off_is_accepted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, -200)
    assert refusal(served, signed(served)) is None


def test_other_mistakes_are_named(served: Served) -> None:
    good = signed(served)
    authorization = good["Authorization"]
    unknown = authorization.replace(served.key, "AKIAUNKNOWNUNKNOWN00")
    not_ascii = "e30=.\udcff\u00e9".encode(errors="replace").decode()
    for change, code in (
        ({}, "MissingAuthenticationTokenException"),
        ({**good, "Authorization": "Basic abc"}, "IncompleteSignatureException"),
        ({**good, "Authorization": authorization.split(", SignedHeaders")[0]}, "IncompleteSignatureException"),
        ({**good, "Authorization": authorization.replace("host;", "")}, "InvalidSignatureException"),
        ({**good, "Authorization": unknown}, "UnrecognizedClientException"),
        ({k: v for k, v in good.items() if k != "X-Amz-Date"}, "IncompleteSignatureException"),
        ({**good, "X-Amz-Date": "yesterday"}, "IncompleteSignatureException"),
        (signed(served, service="ec2"), "InvalidSignatureException"),
        ({**good, "X-Amz-Target": "Logs_20140328.GetLogEvents"}, "InvalidSignatureException"),
        (signed(served, headers={"X-Amz-Content-Sha256": "0" * 64}), "InvalidSignatureException"),
        ({**good, "Authorization": re.sub(r"/\d{8}/", "/20200101/", authorization)}, "InvalidSignatureException"),
        ({**good, "Authorization": authorization.replace("/aws4_", "/aws5_")}, "IncompleteSignatureException"),
        ({**good, "Authorization": authorization.replace(f"/{REGION}/", "/eu-west-1/")}, "InvalidSignatureException"),
        ({**good, "X-Amz-Security-Token": "x"}, "UnrecognizedClientException"),
        ({**good, "X-Amz-Security-Token": not_ascii}, "UnrecognizedClientException"),
    ):  # fmt: skip
        found = refusal(served, change)
        assert found is not None, (change, code)
        assert found[:2] == (403, code)


def test_boto3_sees_awss_errors(served: Served) -> None:
    for arguments, code in (
        ({"secret": "not the secret"}, "InvalidSignatureException"),
        ({"key": "AKIAUNKNOWNUNKNOWN00"}, "UnrecognizedClientException"),
    ):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            served.client(**arguments).describe_job_queues()
        assert caught.value.response["Error"]["Code"] == code
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_fixed_region_refuses_others_and_none_takes_each_calls_own() -> None:
    with Served() as served:
        add_queue(served.client())
        [queue] = served.client(region="eu-west-3").describe_job_queues()["jobQueues"]
        assert queue["jobQueueArn"] == "arn:aws:batch:eu-west-3:123456789012:job-queue/q"
    with Served(settings=AwsSettings(images="local", region=REGION, account="111122223333")) as served:
        with pytest.raises(botocore.exceptions.ClientError, match="valid region"):
            served.client(region="eu-west-3").describe_job_queues()
        add_queue(served.client())
        [queue] = served.client().describe_job_queues()["jobQueues"]
        assert queue["jobQueueArn"] == f"arn:aws:batch:{REGION}:111122223333:job-queue/q"


def test_sts_tells_who_calls(served: Served) -> None:
    found = served.client("sts").get_caller_identity()
    assert (found["Account"], found["Arn"]) == ("123456789012", "arn:aws:iam::123456789012:user/admin")
    with pytest.raises(botocore.exceptions.ClientError, match="GetCallerIdentity alone"):
        served.client("sts").get_session_token()
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        served.client("sts", secret="wrong").get_caller_identity()
    assert caught.value.response["Error"]["Code"] == "InvalidSignatureException"


# -- temporary credentials --------------------------------------------------------------------------


def test_temporary_credentials_pass_until_they_expire(served: Served) -> None:
    identity = served.front_end.identity
    assert identity is not None
    good = identity.session("admin")
    client = served.client(key=good.key, secret=good.secret, token=good.token)
    assert len(client.describe_job_queues()["jobQueues"]) == 1

    def code(**change: Any) -> str:
        arguments = {"key": good.key, "secret": good.secret, "token": good.token, **change}
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            served.client(**arguments).describe_job_queues()
        found: str = caught.value.response["Error"]["Code"]
        return found

    old = identity.session("admin", time.time() - 7200)
    assert code(key=old.key, secret=old.secret, token=old.token) == "ExpiredTokenException"
    assert code(token=None) == "UnrecognizedClientException"
    assert code(key=served.key, secret=served.secret) == "UnrecognizedClientException"
    assert code(secret=served.secret) == "InvalidSignatureException"
    foreign = Identity.new().session("admin")
    assert code(key=foreign.key, secret=foreign.secret, token=foreign.token) == "UnrecognizedClientException"
    assert good.token is not None
    claim, _, mac = good.token.partition(".")
    assert code(token=f"{claim[:-8]}AAAAAAA=.{mac}") == "UnrecognizedClientException"


# -- web pages --------------------------------------------------------------------------------------


def test_what_a_web_page_could_send_is_refused(served: Served) -> None:
    for headers, status in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": f"evil.example:{served.front_end.port}"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ):
        found = refusal(served, signed(served, headers=headers))
        assert found is not None
        assert found[0] == status
    for host in ("localhost", f"LOCALHOST:{served.front_end.port}", "[::1]"):
        assert refusal(served, {**signed(served, headers={"Host": host})}) is None


def test_without_authentication_everybody_is_one_principal() -> None:
    with Served(no_auth=True) as served:
        client = served.client(secret="anything")
        add_queue(client)
        define(client, "d", "true")
        job = client.submit_job(jobName="x", jobQueue="q", jobDefinition="d")["jobId"]
        assert served.run(served.kernel.describe_job(job)).principal == "no-auth"
        assert served.client("sts").get_caller_identity()["Arn"].endswith(":user/no-auth")
        assert served.post(LIST, signed=False)[0] == 200
        assert refusal(served, {"Origin": "http://evil.example"})[0] == 403
        assert refusal(served, {"Host": "evil.example"})[0] == 403


def test_no_auth_is_refused_off_loopback() -> None:
    for bind in ("0.0.0.0:0", "192.0.2.1:0", "[::]:0", "example.org:80"):
        with pytest.raises(InvalidValue, match="loopback"):
            AwsFrontEnd(anybatch.Kernel(), bind=bind, no_auth=True)
    for bind in ("127.0.0.1:0", "127.9.9.9:0", "localhost:0", "[::1]:0"):
        AwsFrontEnd(anybatch.Kernel(), bind=bind, no_auth=True)
    for bind in ("8642", "host:", ":1", "host:99999", "host:x"):
        with pytest.raises(InvalidValue, match="bind"):
            AwsFrontEnd(anybatch.Kernel(), bind=bind)


# -- the file ---------------------------------------------------------------------------------------


def test_the_file_of_keys_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = Identity.open(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.open(path).first == first.first
    assert first.first.secret not in repr(first)
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o640)
    with pytest.raises(InvalidValue, match="chmod 600"):
        Identity.open(path)


def test_two_that_start_at_once_use_one_file(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(Identity.open(tmp_path / "keys.json").first.key)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["keys.json"]


def test_a_file_with_a_mistake_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    Identity.open(path)
    good = json.loads(path.read_text())

    def written(change: Callable[[dict[str, Any]], None]) -> str:
        content = json.loads(json.dumps(good))
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidValue) as caught:
            Identity.open(path)
        return str(caught.value)

    def policy(**change: Any) -> Callable[[dict[str, Any]], None]:
        statement = {"Effect": "Allow", "Action": "batch:*", "Resource": "*", **change}
        return lambda c: c["principals"][0].update(policies=[{"Version": "2012-10-17", "Statement": [statement]}])

    for change, match in (
        (lambda c: c.update(version=2), "version"),
        (lambda c: c.update(more=1), "more"),
        (lambda c: c.update(session_secret="short"), "session_secret"),
        (lambda c: c["principals"][0].update(secret_access_key="short"), "principals[0].secret_access_key"),
        (lambda c: c["principals"][0].update(access_key_id="x"), "principals[0].access_key_id"),
        (lambda c: c["principals"].append(dict(c["principals"][0])), "principals[1].access_key_id"),
        (lambda c: c["principals"][0].update(name="a b"), "principals[0].name"),
        (policy(Effect="Maybe"), "Statement[0].Effect"),
        (policy(Action="SubmitJob"), "Statement[0].Action"),
        (policy(NotAction="batch:*"), "either Action or NotAction"),
        (policy(Resource=[]), "Statement[0].Resource"),
        (policy(Principal="*"), "Statement[0].Principal"),
        (policy(Condition={"StringMatches": {"aws:username": "x"}}), "StringMatches"),
        (policy(Condition={"StringEquals": {"aws:MultiFactorAuthPresent": "true"}}), "MultiFactorAuthPresent"),
        (policy(Condition={"IpAddress": {"aws:SourceIp": "localhost"}}), "IpAddress"),
        (policy(Resource="arn:aws:batch:*:*:job-queue/${aws:PrincipalTag/team}"), "policy variables"),
    ):
        assert match in written(change)
