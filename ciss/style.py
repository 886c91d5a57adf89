"""How runs are called and drawn, the same in every table and figure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from ciss.errors import CissError
from ciss.names import unknown

METHOD_NAMES = {
    "ft": "FT",
    "lwf": "LWF",
    "lwf-mc": "LWF-MC",
    "ilt": "ILT",
    "ewc": "EWC",
    "rw": "RW",
    "pi": "PI",
    "mib": "MiB",
    "plop": "PLOP",
    "ssul": "SSUL",
    "dft": "DFT*",
    "cfs": "CFSSeg",
}
#: variants that config.yaml declares
VARIANT_NAMES = {
    "mib-ewf": "MiB+EWF",
    "plop-ewf": "PLOP+EWF",
    "mib-ewf-frozen": "MiB+EWF frozen",
    "plop-ewf-frozen": "PLOP+EWF frozen",
}

INIT_NAMES = {
    "random": "random",
    "mib": "MiB init",
    "copy": "copy",
    "awt": "AWT",
    "awt-10": "AWT 10 %",
    "awt-50": "AWT 50 %",
    "awt-75": "AWT 75 %",
    "awt-perclass": "AWT per class",
    "awt-copybias": "AWT copied bias",
    "awt-replace": "AWT replacing",
    "randchannels": "random channels",
    "nest": "NeST",
}

DATASET_NAMES = {
    "voc": "Pascal VOC 2012",
    "ade": "ADE20K",
    "cityscapes": "Cityscapes",
    "camvid": "CamVid",
    "shapes": "Shapes",
}

# Okabe and Ito's eight colours but yellow, which vanishes on white paper, and Tol's "muted" ones
# that stay apart from them under simulated colour blindness. With a marker of its own for each
# method, curves can be told apart in grey too.
_METHOD_LOOKS = {
    "ft": ("#8C8C8C", "o"),
    "lwf": ("#56B4E9", "s"),
    "lwf-mc": ("#332288", "p"),
    "ilt": ("#009E73", "v"),
    "ewc": ("#B5A642", "<"),
    "rw": ("#882255", ">"),
    "pi": ("#CC79A7", "*"),
    "mib": ("#0072B2", "^"),
    "plop": ("#D55E00", "D"),
    "ssul": ("#E69F00", "P"),
    "dft": ("#000000", "X"),
    "cfs": ("#6633FF", "d"),
    # As other variants do, these have the method's colour.
    "mib-ewf": ("#0072B2", (4, 1, 0)),
    "mib-ewf-frozen": ("#0072B2", (3, 1, 0)),
    "plop-ewf": ("#D55E00", (8, 1, 0)),
    "plop-ewf-frozen": ("#D55E00", "H"),
}
# For methods added later and for variants: none of the colours and markers above.
_OTHER_COLOURS = ("#7A4B1E", "#44AA99", "#AA4499")
_OTHER_MARKERS: tuple[Any, ...] = ("h", "8", (6, 1, 0))

# The initialisation is the line and the marker's filling: full for AWT, the one under study.
_INIT_LOOKS: dict[str, tuple[Any, str]] = {
    "": ("-", "none"),
    "random": (":", "none"),
    "mib": ("--", "none"),
    "randchannels": ("-.", "none"),
    "nest": ((0, (2, 1)), "bottom"),
    "awt": ((0, (6, 1.2)), "full"),
    "awt-10": ((0, (1, 1.2)), "left"),
    "awt-50": ((0, (4, 1.2, 1, 1.2)), "left"),
    "awt-75": ((0, (8, 1.2, 3, 1.2)), "left"),
    "awt-perclass": ((0, (4, 1.2, 1, 1.2)), "bottom"),
    "awt-copybias": ((0, (4, 1.2, 1, 1.2)), "right"),
    "awt-replace": ((0, (4, 1.2, 1, 1.2)), "top"),
}
_OTHER_LINES: tuple[Any, ...] = (
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 3)),
    (0, (5, 3)),
    (0, (9, 2, 1, 2)),
    (0, (2, 1)),
)
_OTHER_FILLINGS = ("none", "left", "right", "bottom", "top")


class Look(NamedTuple):
    """How one run is drawn: Matplotlib's colour, marker, line style and filling of the marker."""

    colour: str
    marker: Any
    line: Any
    filling: str


@dataclass(frozen=True)
class Style:
    """Settings of all figures; sizes in inches (a column of most papers is 3.4) and points.

    ``colours`` overrides or adds the colour of a method by its name in experiments.
    """

    width: float = 3.4
    height: float = 2.2
    max_height: float = 9.0
    font_size: float = 8.0
    font_family: str = "DejaVu Sans"
    line_width: float = 1.0
    marker_size: float = 3.5
    dpi: int = 200
    colour_map: str = "cividis"
    colours: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            number = isinstance(item.default, int | float)
            if number and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise CissError(f"figure setting {item.name} must be a number, not {value!r}")
            if number and not value > 0:
                raise CissError(f"figure setting {item.name} must be above 0, not {value}")

    def look(self, run: str) -> Look:
        """Colour and marker by method, line and filling by initialisation.

        They depend on the name alone, so that a run looks the same whatever is drawn beside it. A
        variant whose name is a method's and a number or a hyphen (``mib100``, ``plop-mine``) has
        the method's colour and a marker of its own.
        """
        method, init = split_run(run)
        line, filling = _INIT_LOOKS.get(init) or (
            _pick(_OTHER_LINES, init),
            _pick(_OTHER_FILLINGS, f"filling of {init}"),
        )
        if method in _METHOD_LOOKS:
            colour, marker = _METHOD_LOOKS[method]
        else:
            parent = re.split(r"[-0-9]", method)[0]
            colour = _METHOD_LOOKS.get(parent, (_pick(_OTHER_COLOURS, method),))[0]
            colour = self.colours.get(parent, colour)
            marker = _pick(_OTHER_MARKERS, f"marker of {method}")
        return Look(self.colours.get(method, colour), marker, line, filling)


def style_from_config(settings: Mapping[str, Any]) -> Style:
    """Make a ``Style`` of a config section; an unknown key is a ``CissError``."""
    known = [item.name for item in fields(Style)]
    for name in settings:
        if name not in known:
            raise CissError(unknown("figure setting", name, known))
    return Style(**settings)


def split_run(run: str) -> tuple[str, str]:
    """Method and initialisation of a run such as ``mib_awt``; the latter may be empty."""
    method, _, init = run.partition("_")
    return method, init


def pretty_name(method: str, init: str = "") -> str:
    """Name of a run in print: ``mib`` and ``awt`` become ``MiB + AWT``; unknown ones stay."""
    name = (METHOD_NAMES | VARIANT_NAMES).get(method, method)
    known = method.removesuffix("-m")
    if known != method and known in METHOD_NAMES:
        # As the papers call a method with a memory: SSUL-M.
        name = f"{METHOD_NAMES[known]}-M"
    return f"{name} + {INIT_NAMES.get(init, init)}" if init else name


def _pick(choices: tuple[Any, ...], name: str) -> Any:
    # Python's own hash of a string differs from process to process.
    return choices[zlib.crc32(name.encode()) % len(choices)]
