// The whole life of jobs through the AWS SDK for JavaScript as it is; every step asserts, and the last line is "ok".
import assert from "node:assert/strict";
import {
  BatchClient, CancelJobCommand, CreateComputeEnvironmentCommand, CreateJobQueueCommand, DeregisterJobDefinitionCommand,
  DescribeJobsCommand, ListJobsCommand, ListSchedulingPoliciesCommand, ListTagsForResourceCommand,
  RegisterJobDefinitionCommand, SubmitJobCommand, TagResourceCommand, TerminateJobCommand, UntagResourceCommand,
  paginateListJobs,
} from "@aws-sdk/client-batch";
import { CloudWatchLogsClient, GetLogEventsCommand } from "@aws-sdk/client-cloudwatch-logs";

// Endpoint, region and credentials come from the environment, as on any other machine.
const batch = new BatchClient({ maxAttempts: 1 });
const logs = new CloudWatchLogsClient({ maxAttempts: 1 });
const send = (command) => batch.send(command);
const bound = Date.now() + 60_000;

async function until(jobId, ...statuses) {
  for (;;) {
    const { jobs } = await send(new DescribeJobsCommand({ jobs: [jobId] }));
    if (statuses.includes(jobs[0].status)) return jobs[0];
    assert.ok(Date.now() < bound, `${jobId} is still ${jobs[0].status}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
const ended = (jobId) => until(jobId, "SUCCEEDED", "FAILED");

await send(new CreateComputeEnvironmentCommand({
  computeEnvironmentName: "js", type: "MANAGED", computeResources: {
    type: "EC2", minvCpus: 0, maxvCpus: 4, subnets: ["subnet-1"], instanceTypes: ["optimal"], instanceRole: "role",
  },
}));
await send(new CreateJobQueueCommand({
  jobQueueName: "js", priority: 1, computeEnvironmentOrder: [{ order: 1, computeEnvironment: "js" }],
}));
async function define(name, script) {
  const { jobDefinitionArn } = await send(new RegisterJobDefinitionCommand({
    jobDefinitionName: name, type: "container", containerProperties: {
      image: "busybox", command: ["sh", "-c", script],
      resourceRequirements: [{ type: "VCPU", value: "1" }, { type: "MEMORY", value: "32" }],
    },
  }));
  return jobDefinitionArn;
}
const submit = (jobName, jobDefinition, more = {}) =>
  send(new SubmitJobCommand({ jobName, jobQueue: "js", jobDefinition, ...more }));

// a single job, and its log
const definition = await define("js-hello", "echo hello from js; exit 3");
const single = await submit("single", definition, { tags: { team: "a" } });
const job = await ended(single.jobId);
assert.equal(job.status, "FAILED");
assert.equal(job.container.exitCode, 3);
assert.equal(job.attempts.length, 1);
assert.ok(job.createdAt <= job.startedAt && job.startedAt <= job.stoppedAt);
const { events } = await logs.send(new GetLogEventsCommand({
  logGroupName: "/aws/batch/job", logStreamName: job.container.logStreamName, startFromHead: true,
}));
assert.deepEqual(events.map((event) => event.message), ["hello from js"]);

// an array, and a chain behind it; a chain whose first job fails
await define("js-ok", "true");
const array = await submit("array", "js-ok", { arrayProperties: { size: 3 } });
const after = await submit("after", "js-ok", { dependsOn: [{ jobId: array.jobId }] });
const last = await submit("last", "js-ok", { dependsOn: [{ jobId: after.jobId }] });
assert.equal((await ended(last.jobId)).status, "SUCCEEDED");
const parent = await ended(array.jobId);
assert.equal(parent.arrayProperties.statusSummary.SUCCEEDED, 3);
const children = await send(new ListJobsCommand({ arrayJobId: array.jobId, jobStatus: "SUCCEEDED" }));
assert.deepEqual(children.jobSummaryList.map((child) => child.arrayProperties.index), [0, 1, 2]);
const fails = await submit("fails", definition);
const behind = await submit("behind", "js-ok", { dependsOn: [{ jobId: fails.jobId }] });
const end = await submit("end", "js-ok", { dependsOn: [{ jobId: behind.jobId }] });
assert.equal((await ended(end.jobId)).statusReason, "Dependent Job failed");

// cancel, terminate
await define("js-sleep", "sleep 600");
const running = await submit("running", "js-sleep");
const waiting = await submit("waiting", "js-sleep", { dependsOn: [{ jobId: running.jobId }] });
await until(running.jobId, "RUNNING");
await send(new CancelJobCommand({ jobId: waiting.jobId, reason: "not wanted" }));
assert.equal((await ended(waiting.jobId)).statusReason, "not wanted");
await send(new TerminateJobCommand({ jobId: running.jobId, reason: "enough" }));
assert.equal((await ended(running.jobId)).statusReason, "enough");

// tags
const resourceArn = single.jobArn;
await send(new TagResourceCommand({ resourceArn, tags: { "b b": "2" } }));
assert.deepEqual((await send(new ListTagsForResourceCommand({ resourceArn }))).tags, { team: "a", "b b": "2" });
await send(new UntagResourceCommand({ resourceArn, tagKeys: ["b b", "none"] }));
assert.deepEqual((await send(new ListTagsForResourceCommand({ resourceArn }))).tags, { team: "a" });

// pages
const names = [];
for await (const page of paginateListJobs({ client: batch, pageSize: 1 }, { jobQueue: "js", jobStatus: "FAILED" })) {
  names.push(...page.jobSummaryList.map((one) => one.jobName));
}
assert.deepEqual(names, ["waiting", "running", "end", "behind", "fails", "single"]);

// errors
await send(new DeregisterJobDefinitionCommand({ jobDefinition: definition }));
await assert.rejects(submit("x", "js-hello"), (error) => {
  assert.equal(error.name, "ClientException");
  assert.match(error.message, /JobDefinition name js-hello does not exist or is not in ACTIVE status/);
  assert.equal(error.$metadata.httpStatusCode, 400);
  return true;
});
await assert.rejects(send(new ListSchedulingPoliciesCommand({})), /not supported here/);
console.log("ok");
