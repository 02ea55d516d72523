#!/usr/bin/env python3
"""Owns: the simulation of docs/scaling.md: how many events wait, and for how long, through bursts and outages of the broker.

The model has two figures of a node, both measured: `answers`, the deliveries that it answers in a second while nothing is
published, and `publishes`, the events that it publishes in a second while nothing arrives. Both take from the same processor
time, so while `rate` deliveries arrive in a second it publishes `publishes * (1 - rate / answers)`. Events are published in the
order in which they came. `tests/bench/run --rows simulation` checks what the model says against the bridge.
"""
import argparse
import dataclasses

STEP_S = 0.01
# A backlog counts as gone when its oldest event is younger than this: some events are always under way.
UNDER_WAY_S = 0.5


@dataclasses.dataclass
class Plan:
    """What arrives, as seconds and deliveries a second one after the other, and when the broker is out, from and to."""

    phases: list
    outages: list

    @property
    def seconds(self):
        return sum(seconds for seconds, _ in self.phases)

    def rate(self, at):
        for seconds, rate in self.phases:
            if at < seconds:
                return rate
            at -= seconds
        return 0

    def is_out(self, at):
        return any(begin <= at < end for begin, end in self.outages)


def sustained(answers, publishes):
    """What a node answers and publishes for ever, in events a second."""
    return 1 / (1 / answers + 1 / publishes)


def simulate(plan, answers, publishes):
    """For each step: when it was, how many events waited, and the age of the oldest of them in seconds."""
    steps, arrived, published, oldest = [], [0.0], 0.0, 0
    for step in range(round(plan.seconds / STEP_S)):
        at = step * STEP_S
        # More than it can answer does not arrive: the sender waits.
        rate = min(plan.rate(at), answers)
        arrived.append(arrived[-1] + rate * STEP_S)
        if not plan.is_out(at):
            published = min(arrived[-1], published + publishes * (1 - rate / answers) * STEP_S)
        while oldest < step and arrived[oldest + 1] <= published:
            oldest += 1
        backlog = arrived[-1] - published
        steps.append((at, backlog, at - oldest * STEP_S if backlog else 0.0))
    return steps


def summary(steps):
    """The largest backlog, the greatest age, and when the backlog was gone."""
    waiting = [at for at, _, age in steps if age > UNDER_WAY_S]
    return {"backlog": max(backlog for _, backlog, _ in steps), "delay_s": max(age for _, _, age in steps), "gone_after_s": max(waiting, default=0.0)}


def scenario(answers, publishes, unit_s):
    """An outage, and a burst right after it, for a node with these figures."""
    rate = sustained(answers, publishes)
    quiet, burst = round(rate / 4), round(rate * 0.6)
    return Plan([(unit_s * 3, quiet), (unit_s, burst), (unit_s * 4, quiet)], [(unit_s, unit_s * 3)])


def compare(predicted, measured):
    """Both summaries, and by how much the prediction is off at most."""
    predicted, measured = summary(predicted), summary(measured)
    off = max(abs(predicted[name] / measured[name] - 1) for name in measured)
    return measured | {f"predicted_{name}": value for name, value in predicted.items()} | {"off": off}


def main():
    def pair(text):
        first, second = text.split(":")
        return float(first), float(second)

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].removeprefix("Owns: "))
    parser.add_argument("--answers", type=float, required=True, help="deliveries a second of one node, nothing published")
    parser.add_argument("--publishes", type=float, required=True, help="events a second of one node, nothing arriving")
    parser.add_argument("--nodes", type=int, default=1, help="nodes that the deliveries are spread over evenly")
    parser.add_argument("--phase", type=pair, action="append", required=True, metavar="SECONDS:RATE")
    parser.add_argument("--outage", type=pair, action="append", default=[], metavar="FROM:TO", help="in seconds")
    options = parser.parse_args()
    plan = Plan([(seconds, rate / options.nodes) for seconds, rate in options.phase], options.outage)
    found = summary(simulate(plan, options.answers, options.publishes))
    print(f"sustained by {options.nodes} node(s): {options.nodes * sustained(options.answers, options.publishes):,.0f} events/s")
    print(f"largest backlog: {found['backlog'] * options.nodes:,.0f} events, {found['backlog']:,.0f} on each node")
    print(f"greatest delay: {found['delay_s']:,.1f} s")
    print(f"backlog gone after: {found['gone_after_s']:,.1f} s of {plan.seconds:,.0f} s")


if __name__ == "__main__":
    main()
