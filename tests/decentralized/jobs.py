"""A small model with heterogeneous data, as virtual nodes and as forked gloo processes."""

import torch
from tests.gloo import world
from torch import nn
from torch.nn import functional as F

from isobatch.decentralized import Decentralized, VirtualNodes

torch.optim.SGD([torch.zeros(1)], lr=0.1)  # what optimizers load on first use is loaded here, not in every fork


def model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data(nodes, steps, samples=6, seed=1):
    """x [steps, nodes, samples, 5] and labels, shifted by node."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, nodes, samples, 5, generator=source, dtype=torch.float64)
    x = x + torch.arange(nodes, dtype=torch.float64)[:, None, None] / nodes
    y = torch.randint(3, (steps, nodes, samples), generator=source)
    return x, y


def loss(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


def momentum(method):
    return 0.0 if method == "dsgd" else 0.8


def virtual(method, topology, x, y, lr=0.05, decay=0.01):
    beta = momentum(method)
    nodes = VirtualNodes(model(), loss, topology, method, lr=lr, momentum=beta, weight_decay=decay)
    for count in range(len(x)):
        nodes.step((x[count], y[count]), lr=lr / (1 + count))
    return nodes


def real(method, topology, lr=0.05, decay=0.01, net=None, **options):
    net = net or model()
    inner = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum(method), weight_decay=decay)
    return net, Decentralized(inner, topology, method, **options)


def train(net, opt, x, y, node, lr=0.05, first=0):
    for count in range(first, len(x)):
        for group in opt.param_groups:
            group["lr"] = lr / (1 + count)
        opt.zero_grad()
        loss(net, (x[count, node], y[count, node])).backward()
        opt.step()


def flat(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


__all__ = ["data", "flat", "loss", "model", "real", "train", "virtual", "world"]
