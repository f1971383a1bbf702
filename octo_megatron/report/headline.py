"""What a run shows, in sentences made from its figures alone."""

from __future__ import annotations

from typing import Any

from octo_megatron.report.style import figure, pair


def headline(summary: dict[str, Any]) -> str:
    """One sentence (two at the most): the result of the run, whether or not it is the one hoped for."""
    claim, ended = summary["claim"], _ended(summary)
    if not ended:
        return _before_rl(summary)
    if claim["holds"]:
        climbs = [f"{name} to {_end(entry)}" for name, entry in _by_end(_branches(summary))]
        return (
            f"RL from {claim['base']} stays flat at {_end(ended[claim['base']])}; it climbs from "
            f"{_listed(climbs)}. {_capital(claim['highest'])} ends highest."
        )
    if claim["holds"] is False:
        return f"The expected effect does not hold in this run: {'; '.join(failures(summary))}."
    if len(summary["rl"]) == 1:
        name, entry = next(iter(ended.items()))
        return f"RL from {name} takes the sampled reward from {_start(entry)} to {_end(entry)}."
    so_far = "" if all(entry["state"] == "done" for entry in summary["rl"].values()) else " done so far"
    return f"Sampled reward over the RL runs{so_far}: {_listed(_changes(ended, 'reward'))}."


def lede(summary: dict[str, Any]) -> str:
    """Under the headline: who ended highest, whose answers are longest, accuracy on held-out problems."""
    claim, ended = summary["claim"], _ended(summary)
    several, said = len(_branches(summary)) > 1, []
    if claim["holds"] is False:
        said.append(f"Sampled reward, start → end: {_listed(_changes(ended, 'reward'))}.")
    if several and not claim["holds"]:
        said.append(f"{_capital(claim['highest'])} ended highest.")
    if several:
        tokens = ended[claim["longest"]]["length"][1]
        longest = _capital(claim["longest"])
        said.append(f"{longest} gives the longest answers of the branches ({tokens:.0f} tokens).")
    if greedy := _changes({n: e for n, e in ended.items() if None not in e["accuracy"]}, "accuracy"):
        said.append(f"Greedy accuracy on held-out problems, before → after RL: {_listed(greedy)}.")
    return " ".join(said)


def failures(summary: dict[str, Any]) -> list[str]:
    """The parts of the claim that this run contradicts, with their figures."""
    claim, rl, limits = summary["claim"], summary["rl"], summary["claim"]["thresholds"]
    said = []
    if claim["base_flat"] is False:
        said.append(f"{claim['base']} ends at {_end(rl[claim['base']])}, not below {limits['base_below']}")
    flat = [name for name, climbs in claim["branches_climb"].items() if not climbs]
    if flat:
        gains = [f"{rl[name]['reward'][1] - rl[name]['reward'][0]:+.2f}" for name in flat]
        verb = "gains" if len(flat) == 1 else "gain"
        said.append(
            f"{_listed(flat)} {verb} {_listed(gains)} over RL, less than {limits['climb_at_least']:+}"
        )
    low = [name for name, above in claim["branches_end_above_half"].items() if not above]
    if low:
        ends, verb = [_end(rl[name]) for name in low], "ends" if len(low) == 1 else "end"
        said.append(f"{_listed(low)} {verb} at {_listed(ends)}, not above {limits['end_above']}")
    if claim["long_is_longest"] is False:
        said.append(f"the longest answers come from {claim['longest']}, not from long")
    return said


def checks(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The claim part by part: (yes, no or open; what; figures). Empty where the lineage has no such comparison."""
    claim, rl, limits = summary["claim"], summary["rl"], summary["claim"]["thresholds"]
    roots = [name for name in summary["roots"] if name in rl]
    branches = [name for name in summary["branches"] if name in rl]
    if not roots or not branches:
        return []
    base = claim["base"] or roots[0]
    ended = list(claim["branches_climb"])
    return [
        (_sign([claim["base_flat"]]), f"{base} stays flat",
         f"ends below {limits['base_below']}: {_figures([base] if claim['base'] else [], rl, 'reward', 3)}"),
        (_sign([claim["branches_climb"].get(name) for name in branches]), "Every branch climbs",
         f"gains {limits['climb_at_least']} or more: {_gains(ended, rl)}"),
        (_sign([claim["branches_end_above_half"].get(name) for name in branches]), "Every branch gets useful",
         f"ends above {limits['end_above']}: {_figures(ended, rl, 'reward', 2)}"),
        (_sign([claim["long_is_longest"]]), "Long thinks longest",
         f"tokens an answer at the end: {_figures(ended, rl, 'length', 0)}"),
    ]  # fmt: skip


def _before_rl(summary: dict[str, Any]) -> str:
    done = [name for name, state in summary["states"].items() if state == "done"]
    if not done:
        return f"The run “{summary['name']}” has not finished a node yet."
    losses = [
        f"{name} {figure(entry['loss'][1], 2)}" for name, entry in summary["train"].items() if name in done
    ]
    return f"{len(done)} of {len(summary['states'])} nodes are done" + (
        f"; training loss at their ends: {_listed(losses)}." if losses else "."
    )


def _sign(parts: list[bool | None]) -> str:
    return "no" if False in parts else "open" if None in parts else "yes"


def _figures(names: list[str], rl: dict[str, Any], key: str, digits: int) -> str:
    return ", ".join(f"{name} {figure(rl[name][key][1], digits)}" for name in names) or "not measured yet"


def _gains(names: list[str], rl: dict[str, Any]) -> str:
    return (
        ", ".join(f"{n} {rl[n]['reward'][1] - rl[n]['reward'][0]:+.2f}" for n in names) or "not measured yet"
    )


def _by_end(entries: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(entries.items(), key=lambda item: -item[1]["reward"][1])


def _ended(summary: dict[str, Any]) -> dict[str, Any]:
    return {n: e for n, e in summary["rl"].items() if e["state"] == "done" and None not in e["reward"]}


def _branches(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary["rl"][name] for name in summary["claim"]["branches_climb"]}


def _changes(entries: dict[str, Any], key: str) -> list[str]:
    """["short 0.74 → 0.85", ..], the highest reward first."""
    return [f"{name} {pair(entry[key], 2)}" for name, entry in _by_end(entries)]


def _start(entry: dict[str, Any]) -> str:
    return figure(entry["reward"][0], 2)


def _end(entry: dict[str, Any]) -> str:
    return figure(entry["reward"][1], 2)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""
