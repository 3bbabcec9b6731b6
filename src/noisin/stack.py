"""The shape of a stack of recurrent layers, and the places in it where noise acts.

A *place* is one site in one layer and direction, named like torch's weights: ``input``,
``hidden_l0``, ``hidden_l0_reverse``, ``weight_hh_l1``, ``between_l0``, ``output``; zoneout's are
``zoneout_hidden_l0`` and ``zoneout_cell_l0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from noisin.laws import Learned
from noisin.noise import Noise, SiteName, Term, terms_of
from noisin.zoneout import Zoneout

Places = dict[str, tuple[Term, ...]]

SITES = tuple(site for site in get_args(SiteName) if site not in ("weight", "row"))
WEIGHTS = ("weight_ih", "weight_hh", "weight")
INTO_A_PRODUCT = ("input", "between", "recurrent")  # that a weight matrix multiplies
GATES = {"LSTM": 4, "GRU": 3}
MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU", "RNN_SIGMOID")


@dataclass(frozen=True)
class Stack:
    """The shape of a stack of recurrent layers.

    Args:
        mode: ``LSTM``, ``GRU``, ``RNN_TANH``, ``RNN_RELU`` or ``RNN_SIGMOID``.
        input_size: I.
        hidden_size: H.
        num_layers: L.
        bidirectional: whether each layer runs in both directions.
        proj_size: P, the size that an LSTM projects h to, or 0.

    Raises:
        ValueError: another mode, a size that no stack has, or a projection but of an LSTM.
    """

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        if min(self.input_size, self.proj_size) < 0 or min(self.hidden_size, self.num_layers) < 1:
            raise ValueError(
                f"hidden_size and num_layers must be >= 1, input_size and proj_size >= 0; got "
                f"{self.hidden_size}, {self.num_layers}, {self.input_size} and {self.proj_size}"
            )
        if self.proj_size and self.mode != "LSTM":
            raise ValueError(
                f"proj_size must be 0 but for an LSTM, got {self.proj_size} of {self.mode}"
            )

    @property
    def directions(self) -> tuple[str, ...]:
        """The suffixes of places and weights, one a direction."""
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def gates(self) -> int:
        """G, the blocks of H rows in a weight matrix."""
        return GATES.get(self.mode, 1)

    @property
    def state_size(self) -> int:
        """Size of h: P with a projection, else H."""
        return self.proj_size or self.hidden_size

    def state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        """Return the shapes of h_0, and for an LSTM of c_0."""
        rows = self.num_layers * len(self.directions)
        shapes = [(rows, batch, self.state_size)]
        return [*shapes, (rows, batch, self.hidden_size)] if self.mode == "LSTM" else shapes

    def features(self, place: str) -> int:
        """Return F, the last dimension of the tensor that a place stands for."""
        if place == "input":
            return self.input_size
        if place.startswith(("candidate", "zoneout_cell")):
            return self.hidden_size
        both = len(self.directions) if place.startswith(("between", "output")) else 1
        return self.state_size * both

    def matrix(self, place: str) -> tuple[int, int]:
        """Return the shape of the weights that a place ``weight_…`` stands for."""
        rows = self.gates * self.hidden_size
        if place.startswith("weight_hh"):
            return rows, self.state_size
        first = place.removesuffix("_reverse") == "weight_ih_l0"
        return rows, self.input_size if first else self.state_size * len(self.directions)

    def weight_shapes(self, place: str, biases: bool) -> list[tuple[int, ...]]:
        """Return the shapes of the parameters of ``_l0``, ``_l0_reverse``, … in torch's order."""
        matrices = [self.matrix(f"weight_{kind}{place}") for kind in ("ih", "hh")]
        own = [(self.gates * self.hidden_size,)] * 2 if biases else []
        projection = [(self.proj_size, self.hidden_size)] if self.proj_size else []
        return [*matrices, *own, *projection]

    def drawn(self, place: str, term: Noise) -> int:
        """Return how many numbers a term outside the weights draws at a step of a sequence."""
        if term.estimate == "preactivation":
            shared = place.startswith(("input", "between"))
            return self.gates * self.hidden_size * (len(self.directions) if shared else 1)
        return self.features(place) * (self.gates if term.gates == "untied" else 1)

    def spread(self, place: str, term: Noise) -> tuple[int, ...]:
        """Return the shape of a learned spread."""
        assert isinstance(term.law.std, Learned)
        per = term.law.std.per
        if per == "layer":
            return ()
        if not is_weight(place):
            sampled = term.estimate == "sample"
            return (self.drawn(place, term) if sampled else self.features(place),)
        rows, columns = self.matrix(place)
        return (rows, columns) if per == "weight" else (rows, 1)


def is_weight(place: str) -> bool:
    """Return whether a place is in the weights."""
    return place.startswith("weight")


def places(stack: Stack, noise: Term | None) -> Places:
    """Return where each term acts, each place with its terms from left to right.

    Raises:
        ValueError: a term cannot act in this stack, or two cannot act together.
    """
    found: Places = {}
    for term in terms_of(noise):
        if isinstance(term, Zoneout):
            here = _places_of_zoneout(stack, term)
        else:
            here = _places_of(stack, supported(term, SITES, "a recurrent layer"))
        for place in here:
            found[place] = (*found.get(place, ()), term)
    for place, terms in found.items():
        together(place, terms)
    check_estimates(noise)
    return found


def check_estimates(noise: Term | None) -> None:
    """Refuse terms whose expectations cannot be taken in one layer."""
    estimates = {term.estimate for term in terms_of(noise) if isinstance(term, Noise)}
    if {"moments", "preactivation"} <= estimates:
        raise ValueError(f"@ moments meets noise that is drawn, not @ preactivation; got {noise}")


def supported(term: Term, sites: Sequence[str], owner: str) -> Noise:
    """Return the term, or refuse what has no meaning.

    Args:
        term: the term.
        sites: where noise can act in the layer.
        owner: the layer, for the message.

    Raises:
        ValueError: the term cannot act there.
    """
    if not isinstance(term, Noise):
        raise ValueError(f"{type(term).__name__} acts in a recurrent layer, got it for {owner}")
    site = term.site.name
    if site not in sites:
        raise ValueError(f"noise in {owner} acts at {', '.join(sites)}; got {term}")
    if term.estimate == "moments":
        _check_moments(term)
    if term.gates == "untied" and site not in INTO_A_PRODUCT:
        why = "a weight has its own draw already" if site in WEIGHTS else "one tensor is perturbed"
        raise ValueError(
            f"@ untied draws for each gate what a product of {', '.join(INTO_A_PRODUCT)} with "
            f"weights sees; at {site} {why}; got {term}"
        )
    if term.estimate == "preactivation":
        if site not in (*INTO_A_PRODUCT, *WEIGHTS):
            raise ValueError(
                f"@ preactivation needs a product with weights that follows; {site} has none "
                f"in {owner}; got {term}"
            )
        if term.gates == "untied":
            raise ValueError(f"@ preactivation draws each unit of each gate by itself; got {term}")
        if term.hold == "cumulative":
            raise ValueError(f"@ preactivation has no draws that could add up; got {term}")
    learned = isinstance(term.law.std, Learned) and term.law.std.per
    if learned == "weight" and site not in WEIGHTS:
        raise ValueError(f'a spread per="weight" needs a site that is a weight; got {term}')
    return term


def _check_moments(term: Noise) -> None:
    """Refuse what two moments of a step cannot tell."""
    if term.site.name == "row":
        raise ValueError(
            f"@ moments needs numbers; the rows of an Embedding are chosen; got {term}"
        )
    if term.hold != "step":
        raise ValueError(
            f"@ moments takes steps to be independent and draws nothing to hold; got {term}"
        )
    if term.gates == "untied":
        raise ValueError(f"@ moments takes gates to be independent already; got {term}")


def together(place: str, terms: Sequence[Term]) -> None:
    """Refuse terms at one place that have no meaning together.

    Raises:
        ValueError: two estimates at one place, or two zoneouts.
    """
    if len({term.estimate for term in terms if isinstance(term, Noise)}) > 1:
        raise ValueError(
            f"the terms at one place take one estimate; got {_shown(terms)} at {place}"
        )
    if len([term for term in terms if isinstance(term, Zoneout)]) > 1:
        raise ValueError(f"one Zoneout acts at a place; got {_shown(terms)} at {place}")


def _shown(terms: Sequence[Term]) -> str:
    return " & ".join(map(str, terms))


def _places_of_zoneout(stack: Stack, term: Zoneout) -> list[str]:
    if term.cell and stack.mode != "LSTM":
        raise ValueError(
            f"Zoneout(cell=…) needs the cell state of an LSTM; got {term} in a {stack.mode}"
        )
    sites = [f"zoneout_{name}" for name in ("hidden", "cell") if getattr(term, name)]
    return [
        f"{site}_l{layer}{direction}"
        for site in sites
        for layer in range(stack.num_layers)
        for direction in stack.directions
    ]


def _places_of(stack: Stack, term: Noise) -> list[str]:
    site, last = term.site.name, stack.num_layers - 1
    if site in ("input", "output"):
        return [site]
    if site == "candidate" and stack.gates == 1:
        raise ValueError(
            f"candidate is g_t of an LSTM or n_t of a GRU; an Elman RNN has none, got {term}"
        )
    available = range(last if site == "between" else stack.num_layers)
    if not available:
        raise ValueError(
            f"between is h of a layer on its way to the next: it needs num_layers >= 2, "
            f"got num_layers=1 with {term} (for one layer, zaremba takes num_layers=1)"
        )
    layers = available
    if term.site.layer is not None:
        if not -len(available) <= term.site.layer < len(available):
            raise ValueError(
                f"{site}[layer] must be within 0 … {len(available) - 1} or count from the end, "
                f"got {term} for {stack.num_layers} layers"
            )
        layers = [available[term.site.layer]]
    directions = ("",) if site == "between" else stack.directions
    return [f"{site}_l{layer}{d}" for layer in layers for d in directions]


def feeding(layer: int) -> str:
    """Return the place of what a layer reads."""
    return f"between_l{layer - 1}" if layer else "input"


def is_sampled(terms: Sequence[Term]) -> bool:
    """Return whether all terms of a place are draws that perturb the tensor itself."""
    return all(isinstance(t, Noise) and t.estimate == "sample" and t.gates == "tied" for t in terms)


def is_propagated(terms: Sequence[Term]) -> bool:
    """Return whether any term is estimated by moments."""
    return any(isinstance(t, Noise) and t.estimate == "moments" for t in terms)


def carries_moments(found: Places, layer: int) -> bool:
    """Return whether a layer works on moments: it or one below it has noise that is propagated."""
    return any(
        is_propagated(terms) and _first_layer(place) <= layer
        for place, terms in found.items()
        if place != "output"
    )


def _first_layer(place: str) -> int:
    """Return the layer where a place is felt first."""
    if place == "input":
        return 0
    site, _, rest = place.partition("_l")
    return int(rest.partition("_")[0]) + (site == "between")


def inside(stack: Stack, found: Places, layer: int) -> list[str]:
    """Return the places whose noise no kernel for plain layers can take, in one layer.

    Noise at a weight that is held for the sequence is not among them, nor is what can be applied
    to the input of the layer beforehand.
    """
    acting = []
    if not is_sampled(found.get(feeding(layer), ())):
        acting.append(feeding(layer))
    own = [
        f"{site}_l{layer}{direction}"
        for site in ("weight_ih", "recurrent", "weight_hh", "candidate", "hidden")
        for direction in stack.directions
    ]
    for place in own:
        terms = found.get(place, ())
        if terms and not (is_weight(place) and is_held(terms)):
            acting.append(place)
    zoneouts = [f"zoneout_{n}_l{layer}{d}" for n in ("hidden", "cell") for d in stack.directions]
    return acting + [place for place in zoneouts if place in found]


def is_held(terms: Sequence[Term]) -> bool:
    """Return whether all terms of a weight are drawn once a call."""
    return all(
        isinstance(t, Noise) and t.estimate == "sample" and t.hold == "sequence" for t in terms
    )
