"""The sites where noise can act: ``at.hidden * Gaussian(0.3)``.

| site | tensor |
|---|---|
| `input` | x_t on its way into the first layer |
| `between` | h_t of layer l on its way up to layer l + 1 |
| `hidden` | h_t itself: what the next step, the next layer and the output all see |
| `recurrent` | h_{t-1} on its way into weight_hh only |
| `candidate` | g_t of an LSTM, n_t of a GRU |
| `output` | the last layer's h_t on its way out |
| `weight_ih` | input-to-hidden weights |
| `weight_hh` | hidden-to-hidden weights |
| `weight` | the weights of a ``Linear`` |
| `row` | the rows of an ``Embedding``: whole word types |
"""

from noisin.noise import Site

input = Site("input")
between = Site("between")
hidden = Site("hidden")
recurrent = Site("recurrent")
candidate = Site("candidate")
output = Site("output")
weight_ih = Site("weight_ih")
weight_hh = Site("weight_hh")
weight = Site("weight")
row = Site("row")

SITES: dict[str, Site] = {
    site.name: site
    for site in (
        input,
        between,
        hidden,
        recurrent,
        candidate,
        output,
        weight_ih,
        weight_hh,
        weight,
        row,
    )
}
