"""Which graphs are refused, in which words, and in which order the others run."""

from __future__ import annotations

from typing import Any

import pytest
from lineages import PLAIN, lineage

from octo_megatron.config.errors import UserError
from octo_megatron.lineage.graph import check_graph, dependencies, descendants, topological_order


def test_the_order_puts_every_node_after_what_it_reads() -> None:
    backwards = {name: dict(PLAIN["nodes"][name]) for name in reversed(PLAIN["nodes"])}
    for graph in (lineage(), lineage(nodes=backwards)):
        check_graph(graph)
        order = topological_order(graph)
        assert sorted(order) == sorted(graph.nodes)
        for name in order:
            assert all(order.index(other) < order.index(name) for other in dependencies(graph.nodes[name]))


def test_a_critic_makes_its_node_wait_for_another() -> None:
    graph = lineage(nodes__rl__advantages="ppo", nodes__rl__critic={"parent": "base"})
    check_graph(graph)
    assert dependencies(graph.nodes["rl"]) == ["stable", "base"]


def test_descendants_include_what_is_only_evaluated() -> None:
    assert descendants(lineage(), {"stable"}) == {"stable", "rl", "evaluate", "export"}
    assert descendants(lineage(), {"base"}) == {"base", "stable", "rl", "evaluate", "export"}
    assert descendants(lineage(), {"export"}) == {"export"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"nodes__stable__parent": "bsae"},
            "nodes.stable.parent: there is no node 'bsae'; did you mean 'base'?",
        ),
        (
            {"nodes__evaluate__of": ["base", "lr"]},
            "nodes.evaluate.of: there is no node 'lr'; did you mean 'rl'?",
        ),
        ({"nodes__base__parent": "stable"}, "the nodes form a cycle: base -> stable -> base"),
        ({"nodes__base__parent": "base"}, "the nodes form a cycle: base -> base"),
        ({"nodes__base__parent": "rl"}, "the nodes form a cycle: base -> stable -> rl -> base"),
        (
            {"nodes__base__mixture": {"wbe": 1.0}},
            "nodes.base.mixture: there is no source 'wbe'; did you mean 'web'?",
        ),
        (
            {"nodes__rl__problems": "lr"},
            "nodes.rl: problem sets: there is no problem set 'lr'; did you mean 'rl'?",
        ),
        ({"nodes__rl__evaluate": ["sane"]}, "there is no problem set 'sane'; did you mean 'same'?"),
        ({"nodes__evaluate__problems": ["x"]}, "there is no problem set 'x'; there are: rl, same"),
        (
            {"nodes__export__parent": "evaluate"},
            "nodes.export reads weights of 'evaluate', a node of kind evaluate",
        ),
        ({"nodes__export__parent": None}, "nodes.export is of kind export and needs parent: NODE"),
        (
            {"nodes__rl__advantages": "ppo", "nodes__rl__critic": {"parent": "stabel"}},
            "nodes.rl.critic.parent: there is no node 'stabel'; did you mean 'stable'?",
        ),
        ({"nodes__rl__advantages": "ppo", "nodes__rl__critic": {"parent": "rl"}}, "cycle: rl -> rl"),
        ({"nodes__rl__parent": None}, "nodes.rl is of kind rl and needs parent: NODE"),
        ({"nodes__rl__hf": "model"}, "from hf: model, not from both; leave one out"),
        ({"nodes__evaluate__parent": "base"}, "nodes.evaluate is of kind evaluate, which has no parent"),
        (
            {"nodes__in": {"kind": "import", "parent": "base"}},
            "nodes.in is of kind import, which has no parent",
        ),
        ({"nodes__../up": {"kind": "import"}}, "nodes: '../up' cannot be a folder's name"),
        ({"sources__a/b": {"builtin": "web", "tokens": 9}}, "sources: 'a/b' cannot be a folder's name"),
        ({"nodes": {}}, "the lineage has no nodes"),
    ],
)
def test_a_wrong_graph_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_graph(lineage(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
