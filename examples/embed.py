"""anybatch inside a service: its own coroutines as jobs, in its own event loop, and every change as an event.

    python examples/embed.py

Prints what becomes of each child as it happens, and how the job ended.
"""

import asyncio
import random

import anybatch


async def resize(attempt: anybatch.InlineAttempt) -> None:
    """A job of the service. An exception is a failed attempt, with its traceback in the attempt's log."""
    (size,) = attempt.args
    attempt.print(f"picture {attempt.index} to {size}")
    await asyncio.sleep(random.random() / 100)
    if attempt.index == 3 and attempt.number == 1:
        raise ConnectionError("the store hung up")


async def watch(kernel: anybatch.Kernel) -> None:
    """Show what becomes of each child. Events come in runs; `expand` makes one of each."""
    async with kernel.events() as events:
        async for run in events:
            for event in run.expand():
                if event.exit_codes is not None:
                    print(f"{event.job_name} {event.job_id.partition(':')[2]}: {event.status} {event.reason or ''}")


async def main() -> None:
    """Run eight children, four at a time; the one that fails is tried again."""
    backends = {"inline": anybatch.InlineBackend({"resize": resize})}
    async with anybatch.Kernel(backends=backends) as kernel:  # Kernel("batch.db") would outlive a crash
        await kernel.create_compute_environment("service", backend="inline", max_vcpus=4)
        await kernel.create_job_queue("pictures", priority=1, compute_environments=["service"])
        watching = asyncio.create_task(watch(kernel))
        job = await kernel.submit_job("resize", queue="pictures", command=["resize", "640x480"], array_size=8, retry=2)
        detail = (await job.wait()).raise_for_status()
        assert detail.status_summary is not None
        print(f"{detail.status}: {detail.status_summary[anybatch.JobStatus.SUCCEEDED]} of {detail.array_size}")
        print((await job[3].read_logs(attempt=1)).decode().splitlines()[-1])
    await watching  # the events end with the kernel


if __name__ == "__main__":
    asyncio.run(main())
