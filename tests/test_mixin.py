"""A module of the user's own goes through the mixin of ``huggingface_hub`` as it is."""

import json

import pytest
import torch
from torch import nn

from conftest import assert_bit_equal
from noisin import LSTM, Bernoulli, at

package = pytest.importorskip("huggingface_hub", reason="whose mixin this is (extra `hub`)")

LEARNED = "hidden + Gaussian(Learned(0.5, floor=0.1)) & output * Bernoulli(keep=0.5)"


class Net(nn.Module, package.PyTorchModelHubMixin, library_name="mine"):
    def __init__(self, hidden_size: int = 16, noise: str = "none", tied: bool = False):
        super().__init__()
        self.words = nn.Embedding(30, hidden_size)
        self.rnn = LSTM(hidden_size, hidden_size, num_layers=2, noise=noise)
        self.read = nn.Linear(hidden_size, 30, bias=False)
        if tied:
            self.read.weight = self.words.weight

    def forward(self, ids):
        return self.read(self.rnn(self.words(ids))[0])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "noise", ["none", "hidden * Gaussian(1.0)", LEARNED, "hidden * Gaussian(0.5) @ moments"]
)
def test_a_module_of_the_users_own_goes_through_the_mixin(tmp_path, noise, tied):
    ids = torch.randint(30, (7, 2))
    net = Net(12, noise=noise, tied=tied)
    for name, parameter in net.named_parameters():
        if "rho_" in name:
            nn.init.constant_(parameter, 0.3)  # as if it had been trained
    net.save_pretrained(tmp_path)
    again = Net.from_pretrained(tmp_path)
    assert not again.training
    assert again.rnn.noise == net.rnn.noise
    assert (again.read.weight is again.words.weight) == tied
    assert_bit_equal(again(ids), net.eval()(ids))
    for model in (net, again):
        model.train()
        torch.manual_seed(5)
        model.noisy = model(ids)
    assert_bit_equal(again.noisy, net.noisy)
    assert json.loads((tmp_path / "config.json").read_text())["noise"] == noise


def test_terms_that_the_mixin_took_apart_are_refused(tmp_path):
    """It writes a dataclass as its fields, without the class: the law is lost, the text is not."""
    net = Net(12, noise=at.hidden * Bernoulli(keep=0.5))
    net.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"noise is None, or terms .* text; got dict"):
        Net.from_pretrained(tmp_path)
    Net(12, noise=str(net.rnn.noise)).save_pretrained(tmp_path)
    assert Net.from_pretrained(tmp_path).rnn.noise == net.rnn.noise
