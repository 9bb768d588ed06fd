"""What a job with a role runs: an unmodified SDK that finds its credentials, region and endpoint by itself."""

import json
import sys
import time

import boto3


def main() -> None:
    session = boto3.Session()
    credentials = session.get_credentials()
    found = {"method": credentials.method, "key": credentials.get_frozen_credentials().access_key}
    if sys.argv[1:2] == ["submit"]:
        found["arn"] = boto3.client("sts").get_caller_identity()["Arn"]
        batch = boto3.client("batch")
        found["job"] = batch.submit_job(jobName="from-a-job", jobQueue="q", jobDefinition="child")["jobId"]
        try:
            batch.describe_job_queues()
        except batch.exceptions.ClientError as e:
            found["refused"] = e.response["Error"]["Code"]
    if sys.argv[1:2] == ["wait"]:
        print(json.dumps(found), flush=True)
        time.sleep(600)
    print(json.dumps(found), flush=True)


main()
