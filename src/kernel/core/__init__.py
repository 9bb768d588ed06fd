"""The pure part of the kernel: inputs in, events and effects out.

No await, no clock, no file, no randomness, no logging. Time is an argument (`now_ms`), ids come in
with the inputs, and the same inputs in the same order give the same events, byte for byte.

Read in this order: `states` (the one transition table), `model` (what a job is), `inputs`, `events`,
`effects`, `children` (the columns), `indexes` (what the outside calls them), `state`, then `machine.handle`, which
composes `decide` (may refuse), `evolve` (the only writer), `follow` (what a fact brings about) and `react` (effects).
"""
