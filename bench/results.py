"""Figures as they come, and the tables that they make."""

import json
import os
import statistics

from cases import BUDGETS, MEMORY_BUDGETS, PEAK, PROGRAMS


class Results:
    def __init__(self, way, sides):
        self.way, self.sides = way, [side.name for side in sides]
        self.seconds, self.cpu, self.memory, self.failed, self.reasons = {}, {}, {}, {}, {}
        self.floors = {}
        self.sizes = {side.name: [sum(map(os.path.getsize, side.programs())) / 1e6] for side in sides}

    def add(self, step, side, cost):
        kinds = ((self.seconds, cost.seconds), (self.cpu, cost.cpu), (self.memory, cost.megabytes))
        for figures, figure in kinds if step.name else ():
            figures.setdefault(step.name, {}).setdefault(side.name, []).append(figure)

    def floor(self, step, seconds):
        """What a step cannot be faster than, whoever does it."""
        self.floors.setdefault(step.name, []).append(seconds)

    def fail(self, steps, side, why):
        names = [step.name for step in steps if step.name]
        for name in names:
            for figures in (self.seconds, self.cpu, self.memory):
                figures.setdefault(name, {})
        for name in [*names, PEAK]:  # the most of some steps is no figure beside the most of all
            self.failed.setdefault(name, []).append(side.name)
        self.reasons.setdefault((side.name, names[0]), f"{side.name} failed at `{names[0]}`: {why.splitlines()[-1]}")

    def show(self):
        print(f"\n{self.way}")
        self.table("seconds", self.seconds, BUDGETS[self.way], statistics.median, 3)
        for name, seconds in self.floors.items():
            floor, by_side = statistics.median(seconds), self.seconds.get(name, {})
            peers = "".join(
                f"{floor / statistics.median(by_side[peer]):11.2f}" if by_side.get(peer) else f"{'-':>11}"
                for peer in self.sides[1:]
            )
            print(f"{name + ', by curl alone':40}{floor:10.3f}" + " " * 10 * (len(self.sides) - 1) + peers)
        self.table("CPU seconds", self.cpu, {}, statistics.median, 2)
        self.table("MB", self.megabytes(), MEMORY_BUDGETS[self.way], max, 1)

    def megabytes(self):
        peaks = {}
        for by_side in self.memory.values():
            for side, values in by_side.items():
                peaks[side] = [max(peaks.get(side, [0]) + values)]
        return {**self.memory, PEAK: peaks, PROGRAMS: self.sizes}

    def figures(self):
        return {"seconds": self.seconds, "floors": self.floors, "CPU seconds": self.cpu, "MB": self.megabytes(), "failed": list(self.reasons.values())}

    def table(self, title, figures, budgets, summary, digits):
        print(f"\n{title:40}" + "".join(f"{side:>10}" for side in self.sides)
              + "".join(f"{'/' + side:>11}" for side in self.sides[1:]) + f"{'budget':>9}")
        for name, by_side in figures.items():
            failed = self.failed.get(name, [])
            known = {side: summary(values) for side, values in by_side.items() if side not in failed}
            row = f"{name:40}"
            for side in self.sides:
                row += f"{known[side]:10.{digits}f}" if side in known else f"{'failed' if side in failed else '-':>10}"
            for peer in self.sides[1:]:
                row += f"{known['ours'] / known[peer]:11.2f}" if "ours" in known and known.get(peer) else f"{'-':>11}"
            print(row + (f"{budgets[name]:9.2f}" if name in budgets else ""))


def save(path, results):
    path.write_text(json.dumps({r.way: r.figures() for r in results}, indent=1) + "\n")
