"""The declared graph of a lineage: what depends on what, and which declarations are refused."""

from __future__ import annotations

import difflib
import re

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import EvaluateNode, ImportNode, LineageConfig, NodeConfig, RLNode, TrainNode

_WEIGHTS = ("import", "train", "rl")
"""Kinds of nodes that leave weights, and so may be parents."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def dependencies(node: NodeConfig) -> list[str]:
    """Nodes whose weights this one reads, each once."""
    names = [node.parent] if node.parent else []
    if isinstance(node, EvaluateNode):
        names += node.of
    if isinstance(node, RLNode) and node.critic.parent is not None:
        names.append(node.critic.parent)
    return list(dict.fromkeys(names))


def sources_of(node: NodeConfig) -> list[str]:
    """Training sources the node reads."""
    return list(node.mixture) if isinstance(node, TrainNode) else []


def problems_of(node: NodeConfig) -> list[str]:
    """Problem sets the node reads, each once."""
    if isinstance(node, RLNode):
        return list(dict.fromkeys([node.problems, *node.evaluate]))
    return list(dict.fromkeys(node.problems)) if isinstance(node, EvaluateNode) else []


def topological_order(lineage: LineageConfig) -> list[str]:
    """Every node after all it depends on; otherwise in the order of the file.

    Raises:
        UserError: the nodes form a cycle, which is named.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            circle = [*path[path.index(name) :], name]
            raise UserError(
                f"the nodes form a cycle: {' -> '.join(reversed(circle))}; let one of them have another "
                "parent"
            )
        path.append(name)
        for other in dependencies(lineage.nodes[name]):
            visit(other)
        order.append(path.pop())

    for name in lineage.nodes:
        visit(name)
    return order


def descendants(lineage: LineageConfig, names: set[str]) -> set[str]:
    """`names` and every node that depends on one of them, directly or not."""
    found = set(names)
    for name in topological_order(lineage):
        if found.intersection(dependencies(lineage.nodes[name])):
            found.add(name)
    return found


def check_graph(lineage: LineageConfig) -> None:
    """Names, parents, kinds and cycles.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    if not lineage.nodes:
        raise UserError("the lineage has no nodes: add `nodes: {NAME: {kind: train, ...}}`")
    for name in lineage.nodes:
        _check_name("nodes", name)
    for table, entries in (("sources", lineage.sources), ("problems", lineage.problems)):
        for name in entries:
            _check_name(table, name)
    for name, node in lineage.nodes.items():
        _check_node(lineage, name, node)
    topological_order(lineage)


def _check_node(lineage: LineageConfig, name: str, node: NodeConfig) -> None:
    nodes = list(lineage.nodes)
    if node.parent is not None:
        _known(f"nodes.{name}.parent", node.parent, nodes, "node")
    if isinstance(node, ImportNode | EvaluateNode) and node.parent is not None:
        instead = "of: [node, ...]" if isinstance(node, EvaluateNode) else "hf: FOLDER"
        raise UserError(f"nodes.{name} is of kind {node.kind}, which has no parent; say {instead}")
    if node.parent_step is not None:
        _check_parent_step(lineage, name, node, node.parent_step)
    folder = node.hf if isinstance(node, TrainNode | RLNode) else ""
    if folder and node.parent is not None:
        raise UserError(
            f"nodes.{name} starts from its parent {node.parent} or from hf: {folder}, not from both; leave one out"
        )
    if node.kind in ("rl", "export") and node.parent is None and not folder:
        other = " or hf: FOLDER" if node.kind == "rl" else ""
        raise UserError(
            f"nodes.{name} is of kind {node.kind} and needs parent: NODE (a train, rl or import node){other}"
        )
    if isinstance(node, EvaluateNode):
        for other in node.of:
            _known(f"nodes.{name}.of", other, nodes, "node")
    if isinstance(node, RLNode) and node.critic.parent is not None:
        _known(f"nodes.{name}.critic.parent", node.critic.parent, nodes, "node")
    for other in dependencies(node):
        kind = lineage.nodes[other].kind
        if kind not in _WEIGHTS:
            raise UserError(
                f"nodes.{name} reads weights of '{other}', a node of kind {kind}; use a train, rl or "
                "import node"
            )
    for source in sources_of(node):
        _known(f"nodes.{name}.mixture", source, list(lineage.sources), "source")
    for problems in problems_of(node):
        _known(f"nodes.{name}: problem sets", problems, list(lineage.problems), "problem set")


def _check_parent_step(lineage: LineageConfig, name: str, node: NodeConfig, step: int) -> None:
    parent = lineage.nodes[node.parent] if node.parent else None
    if not isinstance(parent, TrainNode):
        what = f"'{node.parent}' is of kind {parent.kind}" if parent else "it has no parent"
        raise UserError(
            f"nodes.{name}.parent_step names a step of a train node, but {what}; leave parent_step out"
        )
    if not 1 <= step <= parent.steps:
        raise UserError(
            f"nodes.{name}.parent_step is {step}, but nodes.{node.parent} has steps 1 to {parent.steps}; "
            "change one of them"
        )


def _known(where: str, name: str, known: list[str], what: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known) or 'none'}"
        raise UserError(f"{where}: there is no {what} '{name}'; {hint}")


def _check_name(table: str, name: str) -> None:
    if not _FOLDER_NAME.fullmatch(name):
        raise UserError(
            f"{table}: '{name}' cannot be a folder's name; use letters, digits, '.', '_' and '-' (at most "
            "100)"
        )
