"""The page: one file that needs nothing else, with every node, every figure escaped, and the truth about the claim."""

from __future__ import annotations

import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from octo_megatron.report.canvas import DPI, WIDTH_INCHES, smooth, spread
from octo_megatron.report.page import build
from octo_megatron.report.read import read_run
from octo_megatron.report.style import node_colours, seconds_text, tokens_text
from octo_megatron.report.summary import summarise
from octo_megatron.report.table import result_table

VOID = {"meta", "img", "br", "link", "hr", "path", "rect", "input"}


class Reader(HTMLParser):
    """Collects tags, links and text, and holds that tags close in the order they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(run: Path) -> Reader:
    page = build(run)
    assert page == run / "report" / "index.html"
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_one_file_without_scripts_or_outside_addresses(finished_run: Path) -> None:
    reader = read_page(finished_run)
    assert reader.links and all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert "script" not in reader.tags and "link" not in reader.tags
    page = (finished_run / "report/index.html").read_text()
    assert "http://" not in page and "https://" not in page and "url(" not in page


def test_page_names_every_node_and_every_figure_of_the_claim(finished_run: Path) -> None:
    text = read_page(finished_run).text
    for name in read_run(finished_run).nodes:
        assert name in text
    assert (
        "RL from base stays flat at 0.01; it climbs from long to 0.95 and short to 0.86. Long ends highest."
        in text
    )
    assert "0.50\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}0.95" in text
    assert "digest-rl-short" in text and "megatron-core" in text and "3.5e-06" in text
    assert "not finished" not in text


def test_what_a_model_writes_is_shown_and_not_run(finished_run: Path) -> None:
    reader = read_page(finished_run)
    assert "<script>alert(1)</script> \\boxed{2}" in reader.text  # as text, after unescaping


def test_the_page_says_so_when_the_claim_does_not_hold(writer) -> None:
    writer.mid_training()
    writer.rl("base", rewards=[0.2] * 12)
    writer.rl("short", rewards=[0.4] * 12)
    writer.rl("long", rewards=[0.1] * 6 + [0.3] * 6)
    text = read_page(writer.root).text
    assert (
        "The expected effect does not hold in this run: base ends at 0.20, not below 0.05; short gains +0.00 over RL, "
        "less than +0.1; short and long end at 0.40 and 0.30, not above 0.5."
    ) in text
    assert "Short ended highest." in text and "Long gives the longest answers" in text


def test_page_of_an_unfinished_run_says_what_is_missing(started_run: Path) -> None:
    text = read_page(started_run).text
    assert "This run is not finished: 2 of 9 nodes are done." in text
    assert "Begun: rl-base (rollout 3 of 12)." in text
    assert "Not begun: short, rl-short, rl-long, evaluate, export-long." in text
    assert "short failed: the disk is <full>" in text
    assert not (started_run / "report/accuracy.png").exists()


def test_page_of_a_run_that_has_not_begun(writer) -> None:
    reader = read_page(writer.root)
    assert "has not finished a node yet" in reader.text and reader.links == []


def test_pictures_have_their_size_and_are_not_blank(finished_run: Path) -> None:
    build(finished_run)
    for name in ("rl", "accuracy", "loss", "sources", "time"):
        data = (finished_run / f"report/{name}.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width == round(WIDTH_INCHES * DPI) and 150 < height < 2000
        assert len(data) > width * height / 100, "a blank picture of this size compresses to less"


def test_a_picture_of_an_earlier_report_does_not_outlive_its_data(finished_run: Path) -> None:
    build(finished_run)
    for start in ("base", "short", "long"):
        (finished_run / f"nodes/rl-{start}/done.json").unlink()
    build(finished_run)
    assert not (finished_run / "report/accuracy.png").exists()


def test_a_branch_has_one_colour_and_branches_differ(finished_run: Path) -> None:
    colours = node_colours(read_run(finished_run))
    assert colours["rl-long"] == colours["export-long"] == colours["long"]
    assert len({colours[name] for name in ("base", "stable", "short", "long")}) == 4


def test_terminal_table_fits_80_columns(finished_run: Path) -> None:
    console = Console(width=80, record=True, force_terminal=False)
    console.print(result_table(summarise(finished_run)))
    lines = console.export_text().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    row = next(line for line in lines if line.strip().startswith("long"))
    assert row.split() == [
        "long",
        "3.58k",
        "0.50",
        "→",
        "0.95",
        "0.25",
        "→",
        "1.00",
        "0.25",
        "→",
        "1.00",
        "42",
        "→",
        "42",
    ]
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([1.0, 5.0], [1.0, 5.0]),
        ([1.0, 1.0], [0.5, 1.5]),
        ([0.0, 0.0], [0.0, 1.0]),
        ([2.0, 2.5, 9.0], [1.75, 2.75, 9.0]),
    ],
)
def test_labels_move_apart_no_further_than_needed(places: list[float], expected: list[float]) -> None:
    assert spread(places, gap=1.0, low=0.0) == expected


def test_running_mean_and_number_formats() -> None:
    assert smooth([0.0, 3.0, 6.0, 3.0], 1) == [1.5, 3.0, 4.0, 4.5]
    assert [tokens_text(n) for n in (999, 1000, 699_904, 209_715_200_000)] == ["999", "1k", "700k", "210B"]
    assert [seconds_text(s) for s in (7.25, 59, 75, 3720)] == ["7.2 s", "59 s", "1 min 15 s", "1 h 02 min"]
