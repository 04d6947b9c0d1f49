"""Draw the claims and what rests on what, from left to right, as one SVG.

Ranks come from longest paths, the order within a rank from barycentres, the heights from
a least-squares fit that keeps the order. Edges that others imply are left out, so that
what is reachable stays the same and the eye has less to follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import networkx as nx
import numpy as np
from scipy.optimize import isotonic_regression

HEIGHT, GAP, LANE, BETWEEN = 28, 12, 10, 56
#: Width of a character of the labels, in SVG units; generous, since fonts differ.
CHARACTER, PADDING = 7.4, 22


@dataclass(frozen=True)
class Box:
    """One claim's place in the drawing: left edge, middle height, width."""

    x: float
    y: float
    width: float


@dataclass
class Drawing:
    """Boxes by claim, edges as corner points, and the size of it all."""

    boxes: dict[str, Box]
    edges: dict[tuple[str, str], list[tuple[float, float]]]
    width: float
    height: float


def _ranks(graph: nx.DiGraph) -> dict[str, int]:
    """Longest-path ranks; a claim that rests on nothing stands just before the first that needs it."""
    rank: dict[str, int] = {}
    for node in nx.topological_sort(graph):
        rank[node] = max((rank[other] + 1 for other in graph.predecessors(node)), default=0)
    for node in graph:
        if not graph.in_degree(node):
            rank[node] = min(rank[other] for other in graph.successors(node)) - 1
    return rank


def _layers(graph: nx.DiGraph, rank: Mapping[str, int]) -> tuple[list[list], nx.Graph, dict]:
    """Nodes by rank, with a bend for every rank that an edge crosses."""
    layers: list[list] = [[] for _ in range(max(rank.values()) + 1)]
    for node in graph:
        layers[rank[node]].append(node)
    short, paths = nx.Graph(), {}
    short.add_nodes_from(graph)
    for a, b in graph.edges:
        path = [a, *((a, b, r) for r in range(rank[a] + 1, rank[b])), b]
        for bend in path[1:-1]:
            layers[bend[2]].append(bend)
        nx.add_path(short, path)
        paths[a, b] = path
    return layers, short, paths


def _sort_layers(layers: list[list], short: nx.Graph, sweeps: int = 12) -> None:
    """Order every layer by the mean place of its neighbours in the layer before, then after."""
    for sweep in range(sweeps):
        forward = sweep % 2 == 0
        order = range(1, len(layers)) if forward else range(len(layers) - 2, -1, -1)
        for number in order:
            place = {node: i for i, node in enumerate(layers[number - 1 if forward else number + 1])}

            def centre(node, place=place, layer=tuple(layers[number])) -> float:
                near = [place[other] for other in short[node] if other in place]
                return float(np.mean(near)) if near else layer.index(node)

            layers[number].sort(key=centre)


def _heights(layers: list[list], short: nx.Graph, sweeps: int = 12) -> dict:
    """Heights that stay near the neighbours' and never bring two boxes together."""

    def room(node) -> float:
        return HEIGHT + GAP if isinstance(node, str) else LANE

    offsets = []
    for layer in layers:
        steps = [(room(a) + room(b)) / 2 for a, b in pairwise(layer)]
        offsets.append(np.concatenate([[0.0], np.cumsum(steps)]))
    y = {
        node: at for layer, offset in zip(layers, offsets, strict=True) for node, at in zip(layer, offset, strict=True)
    }
    for sweep in range(sweeps):
        numbers = range(len(layers)) if sweep % 2 == 0 else range(len(layers) - 1, -1, -1)
        for number in numbers:
            layer = layers[number]
            wanted = np.array([np.mean([y[other] for other in short[node]] or [y[node]]) for node in layer])
            fitted = isotonic_regression(wanted - offsets[number]).x + offsets[number]
            y.update(zip(layer, fitted, strict=True))
    low = min(y.values())
    return {node: at - low for node, at in y.items()}


def _draw_one(graph: nx.DiGraph, width_of: Callable[[str], float]) -> Drawing:
    rank = _ranks(graph)
    layers, short, paths = _layers(graph, rank)
    _sort_layers(layers, short)
    y = _heights(layers, short)
    widths = [max(width_of(node) for node in layer if isinstance(node, str)) for layer in layers]
    left = np.concatenate([[0.0], np.cumsum([w + BETWEEN for w in widths])])
    boxes = {node: Box(left[rank[node]], y[node] + HEIGHT / 2, width_of(node)) for node in graph}
    edges = {}
    for (a, b), path in paths.items():
        points = [(boxes[a].x + boxes[a].width, boxes[a].y)]
        for bend in path[1:-1]:
            at = y[bend] + HEIGHT / 2
            points += [(left[bend[2]], at), (left[bend[2]] + widths[bend[2]], at)]
        edges[a, b] = [*points, (boxes[b].x, boxes[b].y)]
    return Drawing(boxes, edges, left[-1] - BETWEEN, max(y.values()) + HEIGHT)


def layout(graph: nx.DiGraph, width_of: Callable[[str], float]) -> Drawing:
    """Lay out the graph; pieces that do not hang together stand in rows, the largest first.

    Args:
        graph: Edges from a claim to what rests on it, without rings; nodes without edges are left out.
        width_of: Width of a node's box.

    Returns:
        Where everything stands.
    """
    graph = nx.transitive_reduction(graph)
    pieces = [piece for piece in nx.weakly_connected_components(graph) if len(piece) > 1]
    order = {node: number for number, node in enumerate(graph)}
    drawn = []
    for piece in sorted(pieces, key=lambda piece: (-len(piece), min(order[node] for node in piece))):
        part = nx.DiGraph()
        part.add_nodes_from(sorted(piece, key=order.__getitem__))
        part.add_edges_from(edge for edge in graph.edges if edge[0] in piece)
        drawn.append(_draw_one(part, width_of))
    whole = Drawing({}, {}, max((part.width for part in drawn), default=0), 0)
    x = y = row = 0.0
    for part in drawn:
        if x and x + part.width > whole.width:
            x, y, row = 0.0, y + row + 2 * GAP, 0.0
        whole.boxes |= {node: Box(box.x + x, box.y + y, box.width) for node, box in part.boxes.items()}
        whole.edges |= {edge: [(a + x, b + y) for a, b in points] for edge, points in part.edges.items()}
        x, row = x + part.width + BETWEEN, max(row, part.height)
        whole.height = y + row
    return whole


def _curve(points: list[tuple[float, float]]) -> str:
    """Straight along the bends, an S between them."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (x0 + x1) / 2
        flat = abs(y1 - y0) < 0.05
        path += f"H{x1:.1f}" if flat else f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    return path


@dataclass(frozen=True)
class Look:
    """How one claim appears: its words, its verdict, its tooltip, where it leads, what falls with it."""

    label: str
    symbol: str
    verdict: str
    title: str
    href: str
    falls: Iterable[str]


def svg(graph: nx.DiGraph, looks: Mapping[str, Look], name: str) -> str:
    """The drawing as SVG text; colours come from the classes `verdict-…`.

    Args:
        graph: Edges from a claim to what rests on it.
        looks: How each node appears.
        name: What a screen reader calls the drawing.
    """
    drawing = layout(graph, lambda node: len(looks[node].label) * CHARACTER + 2 * PADDING)
    margin = 6
    width, height = drawing.width + 2 * margin, drawing.height + 2 * margin
    parts = [
        f'<svg class="claim-graph" xmlns="http://www.w3.org/2000/svg" role="group" aria-label="{escape(name)}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="{-margin} {-margin} {width:.0f} {height:.0f}">'
    ]
    for (a, b), points in drawing.edges.items():
        parts.append(f'<path class="edge" data-from="{a}" data-to="{b}" d="{_curve(points)}"/>')
    for node, box in drawing.boxes.items():
        look = looks[node]
        parts.append(
            f'<a class="node verdict-{look.verdict}" href="{escape(look.href)}" data-claim="{node}" '
            f'data-falls="{" ".join(look.falls)}"><title>{escape(look.title)}</title>'
            f'<rect x="{box.x:.1f}" y="{box.y - HEIGHT / 2:.1f}" width="{box.width:.1f}" height="{HEIGHT}" rx="5"/>'
            f'<text class="symbol" x="{box.x + 10:.1f}" y="{box.y + 4.5:.1f}">{escape(look.symbol)}</text>'
            f'<text x="{box.x + 27:.1f}" y="{box.y + 4.5:.1f}">{escape(look.label)}</text></a>'
        )
    return "\n".join([*parts, "</svg>"])
