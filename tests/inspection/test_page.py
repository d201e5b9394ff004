import re
from html.parser import HTMLParser

from hwpq_tvm.inspection.inspection import Inspection
from hwpq_tvm.inspection.page import html_page
from hwpq_tvm.inspection.speeds import Speeds

from . import artifacts

HOSTILE = "<script>document.title = 'taken'</script>\"'&amp;<img src=x onerror=alert(1)>"


class Outline(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag):
        return sum(found == tag for found, _ in self.tags)


def test_one_artefact_has_its_summary_pictures_and_layers(tmp_path):
    inspection = Inspection((artifacts.artifact(tmp_path / "a"),))
    outline = Outline(html_page(inspection))
    text = "".join(outline.text)
    assert all(sentence in text for sentence in inspection.summary(inspection.artifacts[0]))
    assert outline.count("picture") == outline.count("img") == len(inspection.pictures())
    assert outline.count("tr") == 1 + len(inspection.artifacts[0].layers)
    assert "model.layers.2.mlp.down_proj" in text
    assert "What differs" not in text


def test_several_are_compared(tmp_path):
    both = (
        artifacts.artifact(tmp_path / "a", artifacts.report(choice=artifacts.CHOICE)),
        artifacts.artifact(tmp_path / "b", artifacts.report("dense int8", 8.5, 0.01)),
    )
    linears = {"model.layers.0.self_attn.q_proj+k_proj.weight": 12.34e-6}
    text = "".join(Outline(html_page(Inspection(both, Speeds({"a": artifacts.figures(linears=linears)}, "here")))).text)
    assert "What differs" in text
    assert "Layers that differ (12)" in text
    assert "2:4 earned its place in 1 of 2 units." in text
    assert "built: the choice" in text
    assert "12.3" in text


def test_nothing_is_asked_for_from_elsewhere(tmp_path):
    page = html_page(Inspection((artifacts.artifact(tmp_path / "a"),)))
    for tag, attributes in Outline(page).tags:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:"), tag
        assert not any(name.startswith("on") for name in attributes)
    style = re.search("<style>(.*?)</style>", page, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


def test_what_an_artefact_says_is_escaped_everywhere(tmp_path):
    content = artifacts.report(warnings=[HOSTILE], notes=[HOSTILE], choice={**artifacts.CHOICE, "verdict": [HOSTILE]})
    content["model"] |= {"architecture": HOSTILE, "source": HOSTILE}
    for layer in content["layers"]:
        layer |= {"name": layer["name"] + HOSTILE, "scheme": HOSTILE, "skipped": HOSTILE, "kernel": {"x": HOSTILE}}
    source = {"path": HOSTILE, "format": "torch", "bytes": 1, "architecture": HOSTILE}
    both = (
        artifacts.artifact(tmp_path / "<b>a", content, source=source),
        artifacts.artifact(tmp_path / "b"),
    )
    page = html_page(Inspection(both, Speeds({HOSTILE: artifacts.figures(linears={HOSTILE: 1e-5})}, HOSTILE)))
    outline = Outline(page)
    assert outline.count("script") == 1
    assert outline.count("b") == 0
    assert all(attributes["src"].startswith("data:") for tag, attributes in outline.tags if tag == "img")
    assert HOSTILE in "".join(outline.text)


def test_the_page_of_a_model_of_smollm2s_size_is_small(tmp_path):
    """211 layers, every one with times and a long word on its records: under 2 MB for two of them."""
    content = artifacts.report(blocks=53)
    for layer in content["layers"]:
        layer["rivals"] = {str(M): {"sparse24_int8": 1.5 * M, "dense_int8": 2.5 * M} for M in (1, 4, 16, 64, 256)}
        layer["record"] = {"decode": "x86_64-rocketlake-105mib: 1, 4, 16, 64, 256 tokens (others by default)"}
    both = tuple(artifacts.artifact(tmp_path / name, content) for name in "ab")
    assert len(html_page(Inspection(both))) < 2e6
